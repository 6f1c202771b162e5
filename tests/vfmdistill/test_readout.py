from __future__ import annotations

import re
from typing import Any

import pytest

from vfmdistill.errors import InputError
from vfmdistill.teachers.readout import Readout


def test_the_default_is_the_last_block() -> None:
    assert Readout().block_indices(12, "t") == (11,)
    assert Readout().embed_dim(768) == 768


def test_blocks_count_from_one_and_keep_their_order() -> None:
    readout = Readout(blocks=(12, 9))
    assert readout.block_indices(12, "t") == (11, 8)
    assert readout.embed_dim(768) == 1536
    assert Readout(blocks=(12, 9), merge="mean").embed_dim(768) == 768


def test_a_list_becomes_a_tuple_so_that_readouts_can_be_keys() -> None:
    given: Any = [9, 12]
    assert hash(Readout(blocks=given)) == hash(Readout(blocks=(9, 12)))


@pytest.mark.parametrize("blocks", [(), (0,), (-1,), (3, 3), (True,), (1.0,), "12", 12])
def test_choices_that_are_none(blocks: Any) -> None:
    with pytest.raises(InputError, match=rf"blocks={re.escape(repr(blocks))} is no choice"):
        Readout(blocks=blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": "keys"}, 'dense=\'keys\' is not known; expected "tokens" or "value"'),
        ({"merge": "sum"}, 'merge=\'sum\' is not known; expected "concat" or "mean"'),
        ({"dense": "value", "blocks": (9,)}, "Drop one of the two"),
    ],
)
def test_options_that_do_not_exist(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Readout(**options)


def test_a_block_that_the_network_lacks() -> None:
    with pytest.raises(InputError, match=r"'dinov2_vitb14' has 12 blocks, blocks=\(9, 13\) asks for 13"):
        Readout(blocks=(9, 13)).block_indices(12, "dinov2_vitb14")
