from pathlib import Path

from support.run_folder import epoch_line, facts, finished_run, open_report, write_run

from detectors.training.run_file import begin_run


def test_how_it_was_made(tmp_path: Path) -> None:
    page = open_report(finished_run(tmp_path))
    assert page.section("Parameter groups").rows() == [
        ["backbone", "102", "1,850,396", "2.5e-5", "0.0001"],
        ["rest", "166", "8,471,481", "0.0004", "0"],
        ["together", "268", "10,321,877", "", ""],
    ]
    assert page.section("Teacher").pairs() == {
        "name": "dinov3_vitb16", "licence": "DINOv3 License", "params": "85,660,416",
    }  # fmt: skip
    assert page.section("Data").rows() == [
        ["annotation file", "cards/train.json", "cards/val.json"], ["images", "1,840", "1,840"],
        ["class names", "3", "3"],
    ]  # fmt: skip
    assert page.section("Versions").pairs() == {"python": "3.11.7", "torch": "2.15.0+cu126"}
    hardware = page.section("Hardware").pairs()
    assert hardware["GPUs"] == "2 × NVIDIA H100 (80.0 GiB)"
    assert (hardware["memory"], hardware["cudnn"], hardware["platform"]) == ("64.0 GiB", "90701", "Linux-6")
    cost = page.section("Cost")
    assert cost.pairs() == {
        "time of all epochs": "13 min 20 s", "GPU hours": "0.889", "time of an epoch": "1 min 40 s",
        "training speed": "50 images/s", "peak memory": "3.0 GiB of the first GPU", "processes": "4 on 2 machines",
    }  # fmt: skip
    assert [node.text for node in cost.all("pre")] == ["python train.py --epochs 8"]


def test_the_recipe_and_what_differs_from_the_published_one(tmp_path: Path) -> None:
    import yaml

    page = open_report(finished_run(tmp_path, batch_size=64)).section("Recipe")
    changed, everything = next(page.all("table")).rows(), next(page.all("details")).rows()
    assert changed == [["batch_size", "64", "128"], ["epochs", "8", "160"], ["plain_epochs", "2", "–"]]
    values = {name: value for name, value, _ in everything}
    assert values["data"] == "cards"
    assert values["input_size"] == "640, 640"
    assert values["dense_until"] == "– → 4"  # 78 of 160, in 8 epochs
    assert {name: meaning for name, _, meaning in everything}["epochs"].startswith("passes over the training images")
    (text,) = page.all("pre")
    assert yaml.safe_load(text.text) == {k: v for k, v in facts(batch_size=64)["recipe"].items() if k != "resume"}


def test_a_published_run_says_so(tmp_path: Path) -> None:
    begin_run(tmp_path, facts(epochs=160, plain_epochs=None))
    assert "Every setting is that of the published run of rtdetrv4_n." in open_report(tmp_path).section("Recipe").text


def test_settings_of_another_version_are_shown_without_stages(tmp_path: Path) -> None:
    given = facts()
    given["recipe"] |= {"model": "rtdetrv9_s", "future": True}
    begin_run(tmp_path, given)
    write_run(tmp_path, [epoch_line(0)])
    page = open_report(tmp_path)
    assert not list(page.all("ol"))
    assert ["future", "yes", ""] in page.section("Recipe").rows()


def test_bad_steps_are_counted_by_epoch_and_can_be_replayed(tmp_path: Path) -> None:
    begin_run(tmp_path / "my run", facts())
    write_run(tmp_path / "my run", [epoch_line(e, bad_steps=n) for e, n in enumerate((0, 2, 2, 5))])
    (tmp_path / "my run" / "bad_steps" / "rank_0" / "step_00000012").mkdir(parents=True)
    page = open_report(tmp_path / "my run")
    assert [node.text for node in page.all("div") if node.text.startswith("bad steps")] == ["bad steps5left out"]
    assert page.section("Bad steps").rows() == [["1", "2"], ["3", "3"]]
    (command,) = page.section("Bad steps").all("pre")
    assert command.text == f"python -m detectors.training.replay '{tmp_path}/my run/bad_steps/rank_0/step_00000012'"
    assert len(list(page.figure("Loss, all parts together").all("path", "bad"))) == 2
