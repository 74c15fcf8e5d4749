"""Part metrics on cases whose answer is known by hand."""

from __future__ import annotations

import pytest
import torch

from recon_ray.tasks.partseg import iou

TABLE = iou.PartTable(("bag", "cap", "mug"), ((0, 1), (2, 3), (4, 5)))


def scores_of(predicted, target, labels, valid=None):
    predicted, target = torch.tensor(predicted), torch.tensor(target)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else torch.tensor(valid)
    labels = torch.tensor(labels)
    counts = iou.count_parts(predicted, target, valid, TABLE.num_parts)
    ious = iou.shape_ious(counts, TABLE.allowed()[labels])
    return ious, iou.summarize(ious, labels, counts.sum(dim=0), TABLE.categories)


def test_a_perfect_prediction_scores_one_everywhere():
    ious, scores = scores_of([[0, 0, 1, 1], [2, 3, 3, 3]], [[0, 0, 1, 1], [2, 3, 3, 3]], [0, 1])
    assert ious.tolist() == [1, 1]
    assert set(scores.metrics().values()) == {1.0}


def test_a_partly_right_shape_has_the_mean_of_its_parts():
    # Part 0: 1 of 3 (one right, one missed, one too many); part 1: 1 of 3 likewise.
    ious, scores = scores_of([[0, 1, 0, 1]], [[0, 0, 1, 1]], [0])
    assert ious.tolist() == pytest.approx([1 / 3])
    assert scores.accuracy == 0.5
    assert scores.class_accuracy == 0.5


def test_a_part_that_neither_has_counts_one():
    ious, _ = scores_of([[0, 0, 0, 0]], [[0, 0, 0, 0]], [0])
    assert ious.tolist() == [1]


def test_a_part_that_only_the_prediction_has_counts_zero():
    ious, _ = scores_of([[0, 0, 1, 0]], [[0, 0, 0, 0]], [0])
    assert ious.tolist() == pytest.approx([(3 / 4 + 0) / 2])


def test_a_part_that_only_the_target_has_counts_zero():
    ious, _ = scores_of([[0, 0, 0, 0]], [[0, 0, 0, 1]], [0])
    assert ious.tolist() == pytest.approx([(3 / 4 + 0) / 2])


def test_absent_categories_are_marked_and_do_not_lower_the_mean():
    _, scores = scores_of([[2, 2, 3, 3]], [[2, 2, 3, 3]], [1])
    assert scores.class_miou == 1
    assert scores.class_accuracy == 1  # parts 0, 1, 4, 5 do not occur
    assert scores.record()["bag"] == {"shapes": 0, "miou": None}
    assert scores.record()["cap"] == {"shapes": 1, "miou": 1.0}
    lines = iou.category_lines(scores.record())
    assert lines[1].split() == ["bag", "-", "-"]
    assert lines[2].split() == ["cap", "1", "100.0%"]


def test_instances_and_classes_are_averaged_differently():
    # Two perfect bags and a cap with nothing right.
    right, wrong = [0, 0, 1, 1], [3, 3, 2, 2]
    _, scores = scores_of([right, right, wrong], [right, right, [2, 2, 3, 3]], [0, 0, 1])
    assert scores.instance_miou == pytest.approx(2 / 3)
    assert scores.class_miou == pytest.approx(1 / 2)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.class_accuracy == pytest.approx(1 / 2)


def test_padded_points_count_nowhere():
    ious, scores = scores_of(
        [[0, 0, 1, 1]], [[0, 0, 0, 0]], [0], valid=[[True, True, False, False]]
    )
    assert ious.tolist() == [1]
    assert scores.accuracy == 1


def test_predictions_are_restricted_to_the_category_and_ties_go_to_the_lowest():
    log_probs = torch.zeros(2, 1, 6)
    log_probs[0, 0, 5] = 1.0  # not a part of a bag
    log_probs[1, 0, 5] = 1.0
    allowed = TABLE.allowed()[torch.tensor([0, 2])]
    assert iou.predict_parts(log_probs, allowed).tolist() == [[0], [5]]


def test_counts_equal_a_loop_over_shapes_and_parts():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randint(6, (2, 5, 40), generator=generator)
    valid = torch.rand(5, 40, generator=generator) < 0.7
    counts = iou.count_parts(predicted, target, valid, 6)
    for shape in range(5):
        for part in range(6):
            p, t = (parts[shape][valid[shape]] == part for parts in (predicted, target))
            expected = [int((p & t).sum()), int(p.sum()), int(t.sum())]
            assert counts[shape, part].tolist() == expected
