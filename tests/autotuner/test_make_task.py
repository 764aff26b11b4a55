import itertools

import pytest
import torch
from networks import NotANumber, Raises, TwoInputs, small_cnn
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from model_opt.autotuner import data
from model_opt.autotuner.constraints import Constraints
from model_opt.autotuner.data import FIT_ROWS, MOST_ROWS
from model_opt.autotuner.make_task import NOISE, NOISE_ROWS, make_task
from model_opt.compression.inputs import batch_size, join
from model_opt.errors import InvalidInput

EXAMPLE = torch.randn(4, 3, 32, 32)


def task(model=None, **given):
    arguments = {"example_input": EXAMPLE, "calibration_data": None, "eval_fn": None, "train_data": None}
    return make_task(model or small_cnn(), **arguments | given, constraints=Constraints(max_accuracy_drop=0.01), seed=0)


def test_the_users_model_is_neither_changed_nor_shared():
    model = small_cnn().train()
    made = task(model, calibration_data=[EXAMPLE])
    assert model.training and not made.model.training
    assert made.model[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_noise_stands_in_for_missing_data_and_says_so():
    made = task()
    assert made.judged_on == NOISE
    assert batch_size(join(made.fit)) + batch_size(join(made.held_out)) == NOISE_ROWS


def test_pairs_from_a_data_loader_are_labelled_data():
    images, classes = torch.randn(50, 3, 32, 32), torch.arange(50) % 10
    made = task(calibration_data=DataLoader(TensorDataset(images, classes), batch_size=16))
    judged, labels = join(made.held_out), torch.cat(made.labels)
    rows = [int((images == row).flatten(1).all(1).nonzero()) for row in judged]
    assert labels.tolist() == [int(classes[row]) for row in rows]
    assert len(rows) == 25


def test_nothing_is_judged_that_was_fitted():
    images = torch.randn(40, 3, 32, 32)
    made = task(calibration_data=images.split(8))
    fitted = {tuple(row.flatten()[:3].tolist()) for row in join(made.fit)}
    judged = {tuple(row.flatten()[:3].tolist()) for row in join(made.held_out)}
    assert len(fitted) == len(judged) == 20 and not fitted & judged


def test_with_training_data_all_calibration_data_judges():
    images, classes = torch.randn(30, 3, 32, 32), torch.arange(30) % 10
    pairs = ((torch.full((8, 3, 32, 32), float(i)), torch.zeros(8)) for i in range(100))  # read once
    made = task(calibration_data=zip(images.split(10), classes.split(10), strict=True), train_data=pairs)
    assert torch.equal(join(made.held_out), images) and torch.equal(torch.cat(made.labels), classes)
    assert len(made.train_data) == 100
    fitted = join(made.fit)
    assert batch_size(fitted) == FIT_ROWS
    assert len(fitted[:, 0, 0, 0].unique()) == FIT_ROWS // 8  # from all over the training data, not from its start
    assert fitted.max() > 90


def test_training_data_must_be_pairs():
    with pytest.raises(InvalidInput, match="item 0 of train_data must be a pair"):
        task(calibration_data=[EXAMPLE], train_data=[EXAMPLE])


def test_single_rows_become_batches():
    assert batch_size(join(task(calibration_data=torch.randn(6, 3, 32, 32).unbind(0)).fit)) == 3


def test_a_mapping_is_an_example_input():
    example = {"left": torch.randn(2, 8), "right": torch.randn(2, 8)}
    made = task(TwoInputs(), example_input=example)
    assert set(made.fit[0]) == {"left", "right"}


def test_the_usual_shapes_are_tried_where_no_example_is_given():
    assert task(small_cnn(), example_input=None).example.shape == (1, 3, 224, 224)
    grey = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    assert task(grey, example_input=None).example.shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("resnet18", {}, r"torch.nn.Module, not str"),
        (Raises(), {}, "raised RuntimeError on example_input.*mat1"),
        (small_cnn(), {"example_input": torch.randn(4, 1, 32, 32)}, "raised RuntimeError.*4x1x32x32"),
        (NotANumber(), {"example_input": torch.randn(2, 4)}, "not finite"),
        (nn.Linear(7, 7), {"example_input": None}, "none of the usual inputs.*example_input="),
        (small_cnn(), {"calibration_data": []}, "calibration_data is empty"),
        (small_cnn(), {"calibration_data": 7}, "must be an iterable of inputs, not int"),
        (small_cnn(), {"calibration_data": ["cat.jpg"]}, "item 0 of calibration_data holds no tensor"),
        (small_cnn(), {"eval_fn": 0.97}, "eval_fn must take a model"),
        (small_cnn(), {"example_input": "cat.jpg"}, "example_input must hold a tensor"),
    ],
)
def test_what_cannot_be_used_is_named(model, given, message):
    with pytest.raises(InvalidInput, match=message):
        task(model, **given)


def test_an_iterable_that_raises_is_named():
    def broken():
        yield EXAMPLE
        raise OSError("disk gone")

    with pytest.raises(InvalidInput, match=r"calibration_data raised OSError.*disk gone"):
        task(calibration_data=broken())


@pytest.mark.parametrize("form", ["batches", "loader", "dataset"])
def test_rows_are_drawn_from_all_of_sorted_data_and_both_halves_have_every_class(form):
    classes = torch.arange(10).repeat_interleave(500)
    images = classes[:, None, None, None] + torch.rand(5000, 3, 32, 32)
    pairs = TensorDataset(images, classes)
    given = {"batches": list(zip(images.split(64), classes.split(64), strict=True)), "dataset": pairs}
    given["loader"] = DataLoader(pairs, batch_size=64)
    made = task(calibration_data=given[form])
    labels = torch.cat(made.labels)
    assert len(labels) == MOST_ROWS // 2
    counts = labels.bincount()
    assert counts.min() > 25
    fitted = torch.cat([batch.amin((1, 2, 3)) for batch in made.fit]).floor().long().bincount()
    assert (fitted - counts).abs().max() <= 1
    first, second = ({row.numpy().tobytes() for row in torch.cat(part)} for part in (made.fit, made.held_out))
    assert not first & second


def test_data_without_end_is_read_for_a_while(monkeypatch):
    monkeypatch.setattr(data, "READ_S", 0.2)
    made = task(calibration_data=itertools.repeat(EXAMPLE))
    assert "was read for 0.2 s" in made.warnings[0]


def test_a_model_that_changes_its_inputs_is_given_copies():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn()

        def forward(self, x):
            return self.net(x.sub_(1))

    kept = EXAMPLE.clone()
    made = task(InPlace(), calibration_data=[EXAMPLE])
    assert "changes its inputs" in made.warnings[0]
    before = made.example.clone()
    made.model(made.example)
    assert torch.equal(EXAMPLE, kept) and torch.equal(made.example, before)
    assert task().warnings == ()


def test_items_with_other_constants_are_left_out_and_said():
    class Timed(nn.Module):
        def forward(self, x, step):
            return x.flatten(1) * step

    made = task(Timed(), example_input=(EXAMPLE, 10), calibration_data=[(EXAMPLE, 10), (EXAMPLE, 500), (EXAMPLE, 10)])
    assert made.warnings[0].startswith("1 items of calibration_data give other values than [10]")
    assert sum(len(batch[0]) for batch in (*made.fit, *made.held_out)) == 2 * len(EXAMPLE)


def test_what_is_trained_on_does_not_judge():
    pairs = [(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(6)]
    made = task(train_data=pairs)
    trained = {row.numpy().tobytes() for inputs, _ in made.train_data for row in inputs}
    assert len(made.train_data) == 3 and len(trained) == 24
    assert not trained & {row.numpy().tobytes() for row in join(made.held_out)}
    assert {row.numpy().tobytes() for row in join(made.fit)} <= trained
    assert len(torch.cat(made.labels)) == 24

    both = task(calibration_data=[*pairs[:2], (EXAMPLE, torch.arange(4))], train_data=pairs)
    assert torch.equal(join(both.held_out), EXAMPLE)
    assert "16 of 20 rows of calibration_data are in train_data" in both.warnings[0]
    with pytest.raises(InvalidInput, match="what is fitted cannot judge"):
        task(calibration_data=pairs, train_data=pairs)
    alone = task(train_data=[(torch.randn(20, 3, 32, 32), torch.arange(20) % 10)])
    assert batch_size(join(alone.held_out)) == 10 and len(alone.train_data[0][1]) == 10


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (lambda rows: torch.arange(rows) % 10, ()),
        (lambda rows: (torch.arange(rows) % 2).float()[:, None], ()),
        (lambda rows: torch.arange(rows) % 2 == 0, ()),
        (lambda rows: torch.randint(2, (rows, 10)).float(), (10,)),
        (lambda rows: torch.randint(5, (rows, 6, 6)), (6, 6)),
    ],
)
def test_targets_of_any_shape_are_labels(target, shape):
    images = torch.randn(40, 3, 32, 32)
    made = task(calibration_data=[(x, y) for x, y in zip(images.split(8), target(40).split(8), strict=True)])
    labels = torch.cat(made.labels)
    assert labels.dtype == torch.long and labels.shape == (20, *shape)
    single = task(calibration_data=list(zip(images, target(40), strict=True)))
    assert torch.cat(single.labels).shape == (20, *shape)


@pytest.mark.parametrize("target", [torch.randn(4, 2), {"boxes": torch.randn(3, 4)}, ["a", "b", "c", "d"]])
def test_targets_that_are_no_classes_are_left_out_and_said(target):
    made = task(calibration_data=[(EXAMPLE, target), (EXAMPLE, target)])
    assert made.labels is None and "of calibration_data" in made.warnings[0] and "agreement" in made.warnings[0]


def test_labels_in_a_mapping_are_no_input():
    example = {"left": torch.randn(4, 8), "right": torch.randn(4, 8)}
    made = task(TwoInputs(), example_input=example, calibration_data=[example | {"labels": torch.arange(4)}])
    assert set(made.fit[0]) == {"left", "right"} and len(torch.cat(made.labels)) == 2
    pair = task(
        TwoInputs(),
        example_input=tuple(example.values()),
        calibration_data=[(tuple(example.values()), torch.arange(4))],
    )
    assert len(torch.cat(pair.labels)) == 2


def test_rows_of_several_sizes_are_kept_apart_and_their_lengths_told():
    words = [torch.full((8, length), length) for length in (12, 10, 12, 9)]
    labels = [torch.full((8,), length) for length in (12, 10, 12, 9)]
    made = task(nn.Embedding(20, 3), example_input=words[0], calibration_data=zip(words, labels, strict=True))
    assert [dict(one) for one in made.interface.lengths] == [{1: (9, 12)}]
    assert {tuple(batch.shape)[1] for batch in made.sizes} == {9, 10, 12}
    assert sum(map(batch_size, (*made.fit, *made.held_out))) == 32
    for batch, label in zip(made.held_out, made.labels, strict=True):
        assert (batch == batch.shape[1]).all() and (label == batch.shape[1]).all()


def test_data_of_another_size_than_the_example_is_used_where_the_model_takes_it():
    made = task(calibration_data=[torch.randn(8, 3, 64, 64)])
    assert [dict(one) for one in made.interface.lengths] == [{2: (32, 64), 3: (32, 64)}]


def test_rows_of_sizes_that_the_model_does_not_take_are_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(InvalidInput, match=r"batch of 4x3x64x64, example_input is 4x3x32x32, and .* raised Runtime"):
        task(model, calibration_data=[EXAMPLE, torch.randn(4, 3, 64, 64)])
    with pytest.raises(InvalidInput, match=r"item 0 of calibration_data has tensors of 4x2x3x32x32, example_input of"):
        task(calibration_data=[torch.randn(4, 2, 3, 32, 32)])


def test_a_model_that_takes_one_batch_only_gets_batches_of_that():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3 * 32 * 32, 10)

        def forward(self, x):
            return self.out(x.reshape(1, -1))

    made = task(One(), example_input=EXAMPLE[:1], calibration_data=[torch.randn(1, 3, 32, 32) for _ in range(9)])
    assert {batch_size(batch) for batch in (*made.fit, *made.held_out)} == {1}
    assert len(made.fit) + len(made.held_out) == 9


class Detector(nn.Module):
    """Takes a list of images of unlike sizes, and gives the best places of each."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, images, targets=None):
        found = []
        for image in images:
            small = nn.functional.interpolate(image[None], (16, 16))
            places = self.head(self.features(small).relu()).flatten(2)[0].T
            found.append({"boxes": places[places[:, 4].topk(5).indices, :4]})
        return found


def two_images(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 20, 30, generator=generator), torch.rand(3, 24, 18, generator=generator)]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("form", ["none", "lists", "tuples", "arguments", "with targets"])
def test_lists_of_images_stay_lists(form, wrapped):
    images = [two_images(seed) for seed in range(8)]
    given = {
        "none": None,
        "lists": images,
        "tuples": [tuple(one) for one in images],
        "arguments": [(one,) for one in images],
        "with targets": [(tuple(one), [{"boxes": torch.rand(2, 4)}] * 2) for one in images],
    }
    example = (images[0],) if wrapped else images[0]
    made = task(Detector(), example_input=example, calibration_data=given[form])
    assert made.interface.coupled and made.labels is None and len(made.fit) == len(made.held_out) == 4
    for (batch,) in (*made.fit, *made.held_out):
        assert [tuple(image.shape) for image in batch] == [(3, 20, 30), (3, 24, 18)]
        assert form == "none" or any(all(map(torch.equal, batch, one)) for one in images)


class Losing(nn.Module):
    """As in transformers: labels in, a loss before all else out."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 5)

    def forward(self, values, labels=None):
        scores = self.out(values)
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return {"scores": scores} if loss is None else {"loss": loss, "scores": scores}


@pytest.mark.parametrize("with_example", [True, False])
def test_labels_of_which_the_model_only_computes_a_loss_are_no_input(with_example):
    batches = [{"values": torch.randn(8, 8), "labels": torch.randint(5, (8,))} for _ in range(4)]
    made = task(Losing(), example_input=batches[0] if with_example else None, calibration_data=batches)
    assert set(made.example) == {"values"} and made.labels is not None
    assert "labels are no input" in made.warnings[0]


def test_labels_that_answers_follow_are_an_input():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.of, self.out = nn.Embedding(5, 8), nn.Linear(8, 5)

        def forward(self, values, labels=None):
            return self.out(values if labels is None else values + self.of(labels))

    made = task(Conditioned(), example_input={"values": torch.randn(8, 8), "labels": torch.randint(5, (8,))})
    assert set(made.example) == {"values", "labels"}


def test_batches_stay_whole_where_rows_depend_on_one_another():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_cnn()

        def forward(self, x):
            made = self.net(x)
            return made - made.mean(0)

    batches = [torch.randn(n, 3, 32, 32) for n in (4, 6, 5, 7)]
    labels = [torch.arange(len(batch)) for batch in batches]
    made = task(Centred(), calibration_data=zip(batches, labels, strict=True))
    assert len(made.fit) == len(made.held_out) == 2
    for batch, label in zip(made.held_out, made.labels, strict=True):
        assert any(torch.equal(batch, one) for one in batches) and len(label) == len(batch)


def test_what_all_rows_share_is_neither_cut_nor_joined():
    class Masked(nn.Module):
        def forward(self, x, mask, scale):
            return (x @ mask) * scale

    x, mask = torch.randn(12, 5), torch.eye(5).repeat(1, 1)
    made = task(Masked(), example_input=(x[:4], mask, 2), calibration_data=[(part, mask, 2) for part in x.split(4)])
    assert all(torch.equal(batch[1], mask) for batch in (*made.fit, *made.held_out))
    assert sum(len(batch[0]) for batch in (*made.fit, *made.held_out)) == 12
    other = task(Masked(), example_input=(x[:4], mask, 2), calibration_data=[(x, mask, 2), (x, 2 * mask, 2)])
    assert "1 items of calibration_data give other values" in other.warnings[0]
    assert torch.equal(task(Masked(), example_input=(x, mask, 2)).fit[0][1], mask)


def test_targets_that_are_floats_tell_of_quantities():
    made = task(calibration_data=[(torch.randn(8, 3, 32, 32), torch.randn(8, 10)) for _ in range(5)])
    assert made.labels is None and made.targets.shape == (10,) and not made.targets.shares
    shares = task(calibration_data=[(torch.randn(8, 3, 32, 32), torch.randn(8, 10).softmax(1)) for _ in range(5)])
    assert shares.targets.shares
    assert task(calibration_data=[(torch.randn(8, 3, 32, 32), torch.arange(8)) for _ in range(5)]).targets is None
