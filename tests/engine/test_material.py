"""What is trained on and what is measured on: as a configuration, its files and their names say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from core.engine.adapter_files import public_name
from core.engine.material import Material
from core.fit import count_eval_rows


def write(path: Path, count: int, mark: str = "") -> Path:
    path.write_text("\n".join(json.dumps({"prompt": f"{mark}{n}", "completion": "yes"}) for n in range(count)))
    return path


def read(seed: int = 0, **data: Any) -> tuple[Material, int]:
    """The material, and how many rows the estimate sets aside of it."""
    config = Config.read(
        {"data": data, "task": "classification" if data["train"].endswith(".csv") else "chat", "train": {"seed": seed}}
    )
    material = Material.read(config)
    return material, count_eval_rows(config, len(material.data.examples))


def test_a_folder_brings_its_evaluation_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", 40)
    write(tmp_path / "test.jsonl", 3, "t")
    material, aside = read(train=str(tmp_path))
    assert (len(material.train), len(material.aside), aside) == (40, 3, 0)
    assert [example.messages[0].content for example in material.held.examples] == ["t0", "t1", "t2"]
    (tmp_path / "elsewhere").mkdir()
    material, aside = read(train=str(tmp_path), eval=str(write(tmp_path / "elsewhere" / "mine.jsonl", 5, "m")))
    assert (len(material.train), len(material.held.examples), aside) == (40, 5, 0)
    material, aside = read(train=str(tmp_path / "train.jsonl"))
    assert (len(material.train), len(material.aside), aside) == (38, 2, 2) and material.held is material.data


def test_a_count_and_the_share_of_every_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "\n".join(f"{n},{'rare' if n % 10 == 0 else 'common'}" for n in range(100)))
    for seed in range(5):
        material, aside = read(train=str(path), eval_rows=20, seed=seed)
        labels = [material.held.examples[index].labels for index in material.aside]
        assert aside == len(labels) == 20 and labels.count(("rare",)) == 2
        again, _ = read(train=str(path), eval_rows=20, seed=seed)
        assert (again.train, again.aside) == (material.train, material.aside)
    assert read(train=str(path), eval_rows=0)[0].aside == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("owner/name@v1.0:main:test", "owner/name@v1.0:main:test"),
        ("hub:owner/name@refs/convert/parquet", "hub:owner/name@refs/convert/parquet"),
        ("/their/place/a.csv;/their/other/b.csv", "b.csv"),
        ("their/name@old/place/a.csv", "a.csv"),
        ("/their/place/book.xlsx#Sheet", "book.xlsx#Sheet"),
    ],
)
def test_what_is_published_names_the_data_and_no_path(source: str, said: str) -> None:
    assert public_name(source) == said
