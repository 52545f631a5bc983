"""Two checkpoints become one."""

import pytest
import torch

from training.blend import blend


def test_each_part_takes_its_share_of_the_later_one() -> None:
    names = ("model.vision_tower.weight", "model.image_newline", "model.language_model.weight")
    earlier = {name: torch.zeros(2, dtype=torch.bfloat16) for name in names}
    later = {name: torch.ones(2, dtype=torch.bfloat16) for name in names}
    blended = blend(earlier, later, vision=0.25, decoder=0.75)
    assert [blended[name].tolist() for name in names] == [[0.25, 0.25], [0.25, 0.25], [0.75, 0.75]]
    assert {tensor.dtype for tensor in blended.values()} == {torch.bfloat16}
    assert blend(earlier, later, 1, 1).keys() == later.keys()


def test_checkpoints_of_other_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="lm_head"):
        blend({}, {"lm_head.weight": torch.ones(1)}, 0.5, 0.5)
