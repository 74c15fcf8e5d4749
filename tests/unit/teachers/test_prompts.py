from __future__ import annotations

import pytest
import torch

from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.create import create_text_teacher
from recon_ray.teachers.prompts import NUM_PROMPTS, PREFIXES, SUFFIXES, prompt, prompts


def test_sixty_prompts_are_numbered_by_prefix_mod_20_and_suffix_div_20():
    assert (len(PREFIXES), len(SUFFIXES), NUM_PROMPTS) == (20, 3, 60)
    assert len(set(prompts("chair"))) == 60
    found = prompts("chair")
    assert found[0] == "chair."
    assert found[1] == "A chair."
    assert found[7] == "A 3D model of a chair."
    assert found[20] == "chair with white background."
    assert found[34] == "A 3D rendering model of chair with white background."
    assert found[59] == "A 3D rendering image of a chair with black context."
    assert found[47] == prompt("chair", 47)


@pytest.mark.parametrize("index", [-1, 60])
def test_other_indices_are_refused(index):
    with pytest.raises(ValueError, match=str(index)):
        prompt("chair", index)


def test_bank_rows_are_the_features_of_prompts_or_texts():
    teacher = create_text_teacher("descriptor:32")
    bank = text_bank(teacher, ["chair", "lamp", "chair"], batch_size=7)
    assert bank.shape == (3, 60, 32)
    assert bank.dtype == torch.float32
    assert torch.equal(bank[1], teacher.encode(prompts("lamp")))
    assert torch.equal(bank[0], bank[2])
    bank = text_bank(teacher, ["a red chair", "lamp"], use_prompts=False)
    assert torch.equal(bank, teacher.encode(["a red chair", "lamp"]).unsqueeze(1))
    with pytest.raises(ValueError, match="texts is empty"):
        text_bank(teacher, [])
    with pytest.raises(ValueError, match="batch_size is 0"):
        text_bank(teacher, ["chair"], batch_size=0)
