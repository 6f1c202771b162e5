"""The teachers that learnt from images and text: one row each."""

from __future__ import annotations

from vfmdistill.teachers.spec import IMAGENET_MEAN, IMAGENET_STD, Row

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_APACHE, _MIT = "apache-2.0", "mit"
_NC, _ASCL, _AMLR = "cc-by-nc-4.0", "apple-ascl", "apple-amlr"

# Networks whose tokens are pooled by attention or averaged, and CNNs: what they put out is dense. The largest EVA-CLIP
# was trained by its class token; it normalises behind its attention and so has no value path.
# name, timm's name with tag, patch, width, parameters, normalisation, licence
ROWS: tuple[Row, ...] = (
    ("siglip_base_224", "vit_base_patch16_siglip_224.webli", 16, 768, 92_884_224, _HALF, _APACHE),
    ("siglip_base", "vit_base_patch16_siglip_384.webli", 16, 768, 93_176_064, _HALF, _APACHE),
    ("siglip_base_512", "vit_base_patch16_siglip_512.webli", 16, 768, 93_520_128, _HALF, _APACHE),
    ("siglip_large", "vit_large_patch16_siglip_384.webli", 16, 1024, 316_283_904, _HALF, _APACHE),
    ("siglip_so400m", "vit_so400m_patch14_siglip_378.webli", 14, 1152, 428_225_600, _HALF, _APACHE),
    ("siglip2_base_patch32", "vit_base_patch32_siglip_256.v2_webli", 32, 768, 94_552_320, _HALF, _APACHE),
    ("siglip2_base_224", "vit_base_patch16_siglip_224.v2_webli", 16, 768, 92_884_224, _HALF, _APACHE),
    ("siglip2_base", "vit_base_patch16_siglip_384.v2_webli", 16, 768, 93_176_064, _HALF, _APACHE),
    ("siglip2_base_512", "vit_base_patch16_siglip_512.v2_webli", 16, 768, 93_520_128, _HALF, _APACHE),
    ("siglip2_large", "vit_large_patch16_siglip_384.v2_webli", 16, 1024, 316_283_904, _HALF, _APACHE),
    ("siglip2_large_512", "vit_large_patch16_siglip_512.v2_webli", 16, 1024, 316_742_656, _HALF, _APACHE),
    ("siglip2_so400m_patch14", "vit_so400m_patch14_siglip_378.v2_webli", 14, 1152, 428_225_600, _HALF, _APACHE),
    ("siglip2_so400m", "vit_so400m_patch16_siglip_384.v2_webli", 16, 1152, 428_256_704, _HALF, _APACHE),
    ("siglip2_so400m_512", "vit_so400m_patch16_siglip_512.v2_webli", 16, 1152, 428_772_800, _HALF, _APACHE),
    ("siglip2_giant", "vit_giantopt_patch16_siglip_384.v2_webli", 16, 1536, 1_163_659_776, _HALF, _APACHE),
    ("tipsv2_b14", "vit_base_patch14_reg1_tipsv2.webli", 14, 768, 86_314_752, _UNIT, _APACHE),
    ("tipsv2_l14", "vit_large_patch14_reg1_tipsv2.webli", 14, 1024, 304_014_336, _UNIT, _APACHE),
    ("tipsv2_so400m14", "vit_so400m_patch14_reg1_tipsv2.webli", 14, 1152, 413_391_600, _UNIT, _APACHE),
    ("tipsv2_g14", "vit_giant_patch14_reg1_tipsv2.webli", 14, 1536, 1_135_949_312, _UNIT, _APACHE),
    ("pe_core_t16", "vit_pe_core_tiny_patch16_384.fb", 16, 192, 6_042_240, _HALF, _APACHE),
    ("pe_core_s16", "vit_pe_core_small_patch16_384.fb", 16, 384, 23_586_048, _HALF, _APACHE),
    ("pe_core_b16", "vit_pe_core_base_patch16_224.fb", 16, 768, 92_886_528, _HALF, _APACHE),
    ("pe_core_l14", "vit_pe_core_large_patch14_336.fb", 14, 1024, 316_102_656, _HALF, _APACHE),
    ("pe_core_g14", "vit_pe_core_gigantic_patch14_448.fb", 14, 1536, 1_880_066_560, _HALF, _APACHE),
    ("mobileclip_s0", "fastvit_mci0.apple_mclip", 32, 512, 10_882_176, _UNIT, _AMLR),
    ("mobileclip_s1", "fastvit_mci1.apple_mclip", 32, 512, 21_016_832, _UNIT, _AMLR),
    ("mobileclip_s2", "fastvit_mci2.apple_mclip", 32, 640, 35_159_360, _UNIT, _AMLR),
    ("mobileclip2_s0", "fastvit_mci0.apple_mclip2_dfndr2b", 32, 512, 10_882_176, _UNIT, _AMLR),
    ("mobileclip2_s2", "fastvit_mci2.apple_mclip2_dfndr2b", 32, 640, 35_159_360, _UNIT, _AMLR),
    ("mobileclip2_s3", "fastvit_mci3.apple_mclip2_dfndr2b", 64, 1536, 122_875_584, _CLIP, _AMLR),
    ("mobileclip2_s4", "fastvit_mci4.apple_mclip2_dfndr2b", 64, 2048, 318_638_336, _CLIP, _AMLR),
    ("clip_convnext_base", "convnext_base.clip_laion2b_augreg", 32, 1024, 87_566_464, _CLIP, _APACHE),
    ("clip_convnext_large", "convnext_large_mlp.clip_laion2b_ft_soup_320", 32, 1536, 198_591_168, _CLIP, _APACHE),
    ("clip_convnext_xxlarge", "convnext_xxlarge.clip_laion2b_soup", 32, 3072, 843_398_016, _CLIP, _APACHE),
    ("evaclip_vite14plus", "eva02_enormous_patch14_clip_224.laion2b_plus", 14, 1792, 4_348_720_896, _CLIP, _MIT),
)

# Networks trained by their class token alone: their dense features are the values of the last attention. OpenAI, DFN
# and MetaCLIP trained with "quick" GELU, hence those variants; LAION's ViT-L/14 has a normalisation of its own.
CLASS_TOKEN_ROWS: tuple[Row, ...] = (
    ("clip_vitb32_openai", "vit_base_patch32_clip_quickgelu_224.openai", 32, 768, 87_456_000, _CLIP, _APACHE),
    ("clip_vitb16_openai", "vit_base_patch16_clip_quickgelu_224.openai", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_openai", "vit_large_patch14_clip_quickgelu_224.openai", 14, 1024, 303_179_776, _CLIP, _APACHE),
    ("clip_vitl14_336_openai", "vit_large_patch14_clip_quickgelu_336.openai", 14, 1024, 303_507_456, _CLIP, _APACHE),
    ("clip_vitb32_laion2b", "vit_base_patch32_clip_224.laion2b", 32, 768, 87_456_000, _CLIP, _APACHE),
    ("clip_vitb16_laion2b", "vit_base_patch16_clip_224.laion2b", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_laion2b", "vit_large_patch14_clip_224.laion2b", 14, 1024, 303_179_776, _HALF, _APACHE),
    ("clip_vith14_laion2b", "vit_huge_patch14_clip_224.laion2b", 14, 1280, 630_766_080, _CLIP, _APACHE),
    ("clip_vitg14_laion2b", "vit_giant_patch14_clip_224.laion2b", 14, 1408, 1_011_203_840, _CLIP, _APACHE),
    ("clip_bigg14_laion2b", "vit_gigantic_patch14_clip_224.laion2b", 14, 1664, 1_842_777_344, _CLIP, _APACHE),
    ("clip_vitb32_datacompxl", "vit_base_patch32_clip_224.datacompxl", 32, 768, 87_456_000, _CLIP, _APACHE),
    ("clip_vitb16_datacompxl", "vit_base_patch16_clip_224.datacompxl", 16, 768, 85_799_424, _CLIP, _APACHE),
    ("clip_vitl14_datacompxl", "vit_large_patch14_clip_224.datacompxl", 14, 1024, 303_179_776, _CLIP, _APACHE),
    ("clip_vitl14_dfn2b", "vit_large_patch14_clip_quickgelu_224.dfn2b", 14, 1024, 303_179_776, _CLIP, _ASCL),
    ("clip_vitl14_dfn2b_s39b", "vit_large_patch14_clip_224.dfn2b_s39b", 14, 1024, 303_179_776, _CLIP, _ASCL),
    ("clip_vith14_dfn5b", "vit_huge_patch14_clip_quickgelu_224.dfn5b", 14, 1280, 630_766_080, _CLIP, _ASCL),
    ("clip_vith14_378_dfn5b", "vit_huge_patch14_clip_quickgelu_378.dfn5b", 14, 1280, 631_371_520, _CLIP, _ASCL),
    ("metaclip_vitb16", "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b", 16, 768, 85_799_424, _CLIP, _NC),
    ("metaclip_vitl14", "vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b", 14, 1024, 303_179_776, _CLIP, _NC),
    ("metaclip_vith14", "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b", 14, 1280, 630_766_080, _CLIP, _NC),
    ("metaclip_bigg14", "vit_gigantic_patch14_clip_quickgelu_224.metaclip_2pt5b", 14, 1664, 1_842_777_344, _CLIP, _NC),
    ("metaclip2_vith14", "vit_huge_patch14_clip_quickgelu_224.metaclip2_worldwide", 14, 1280, 630_766_080, _CLIP, _NC),
    ("metaclip2_vith14_378", "vit_huge_patch14_clip_378.metaclip2_worldwide", 14, 1280, 631_371_520, _CLIP, _NC),
    ("metaclip2_bigg14", "vit_gigantic_patch14_clip_224.metaclip2_worldwide", 14, 1664, 1_842_777_344, _CLIP, _NC),
    ("mobileclip_b", "vit_base_mci_224.apple_mclip", 16, 768, 85_955_328, _UNIT, _AMLR),
    ("mobileclip_blt", "vit_base_mci_224.apple_mclip_lt", 16, 768, 85_955_328, _UNIT, _AMLR),
    ("mobileclip2_b", "vit_base_mci_224.apple_mclip2_dfndr2b", 16, 768, 85_955_328, _UNIT, _AMLR),
    ("mobileclip2_l14", "vit_large_patch14_clip_224.apple_mclip2_dfndr2b", 14, 1024, 303_179_776, _CLIP, _AMLR),
    ("evaclip_vitb16", "eva02_base_patch16_clip_224.merged2b", 16, 768, 85_869_312, _CLIP, _MIT),
    ("evaclip_vitl14", "eva02_large_patch14_clip_224.merged2b", 14, 1024, 303_317_952, _CLIP, _MIT),
    ("evaclip_vitl14_336", "eva02_large_patch14_clip_336.merged2b", 14, 1024, 303_645_632, _CLIP, _MIT),
    ("evaclip_vitg14", "eva_giant_patch14_clip_224.merged2b", 14, 1408, 1_011_146_112, _CLIP, _MIT),
)

# Where timm has no variant with the activation that the network was trained with, or no weights.
# name, MODEL/TAG, patch, width, parameters, normalisation, licence
OPEN_CLIP_ROWS: tuple[Row, ...] = (
    ("clip_vitb16_dfn2b", "ViT-B-16-quickgelu/dfn2b", 16, 768, 85_799_424, _CLIP, _ASCL),
)

# Trained by the mean of their tokens (CLIPA), or by an attention over them (CoCa).
OPEN_CLIP_DENSE_ROWS: tuple[Row, ...] = (
    ("clipa_vitl14", "ViT-L-14-CLIPA/datacomp1b", 14, 1024, 303_177_728, _IMAGENET, _APACHE),
    ("clipa_vith14", "ViT-H-14-CLIPA/datacomp1b", 14, 1280, 630_763_520, _IMAGENET, _APACHE),
    ("clipa_bigg14", "ViT-bigG-14-CLIPA/datacomp1b", 14, 1664, 1_842_774_016, _IMAGENET, _APACHE),
    ("coca_vitb32", "coca_ViT-B-32/laion2b_s13b_b90k", 32, 768, 88_901_888, _CLIP, _MIT),
    ("coca_vitl14", "coca_ViT-L-14/laion2b_s13b_b90k", 14, 1024, 306_135_040, _CLIP, _MIT),
)

# Where the weights of open_clip's rows lie on the hub, and those rows of timm that are not under its own name there.
REPOSITORIES = {
    "clip_vitb16_dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
    "clipa_vitl14": "UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B",
    "clipa_vith14": "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B",
    "clipa_bigg14": "UCSC-VLAA/ViT-bigG-14-CLIPA-datacomp1B",
    "coca_vitb32": "laion/CoCa-ViT-B-32-laion2B-s13B-b90k",
    "coca_vitl14": "laion/CoCa-ViT-L-14-laion2B-s13B-b90k",
    "mobileclip_s0": "apple/mobileclip_s0_timm",
    "mobileclip_s1": "apple/mobileclip_s1_timm",
    "mobileclip_s2": "apple/mobileclip_s2_timm",
    "mobileclip_b": "apple/mobileclip_b_timm",
    "mobileclip_blt": "apple/mobileclip_b_lt_timm",
}
