import pytest
import torch
from conftest import short_training, write_patient

from hmvnet.bundle import load_bundle
from hmvnet.config import DataSettings, InferenceSettings
from hmvnet.exits import RefusedError
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.training.best import Best, fold_file, member_files
from hmvnet.training.segmentation_bundle import train_segmentation_bundle


def offered(run, scores, count=2, key="key") -> Best:
    """Networks whose only weight is their step, offered in turn."""
    best = Best(run, key, count)
    for step, score in scores.items():
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(network.weight, step)
        best.offer(network, step, score)
    return best


def steps_of(best: Best, validations: int) -> list[int]:
    return [int(tensors["weight"]) for tensors in best.networks(validations)]


def test_the_best_are_kept_the_best_first_and_of_equals_the_later(tmp_path):
    best = offered(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.7, 5: 0.1})
    assert steps_of(best, 5) == [2, 4]
    assert len(list(tmp_path.glob("best/*/step*"))) == 2
    assert steps_of(offered(tmp_path / "few", {1: 0.5}), 1) == [1]


def test_none_is_kept_unless_asked_for(tmp_path):
    assert offered(tmp_path, {1: 0.5}, count=0).networks(1) == []
    assert not any(tmp_path.rglob("*.safetensors"))
    offered(tmp_path, {2: 0.9}, count=2)  # asked for later: better and worse ones are gone
    best = offered(tmp_path, {3: 0.4}, count=2)
    with pytest.raises(RefusedError, match=r"2 best .* the first 1 are there"):
        best.networks(3)
    offered(tmp_path, {4: 0.1}, count=0)  # and what was kept is not thrown away
    assert steps_of(Best(tmp_path, "key", 1), 4) == [2]


def test_networks_ranked_by_other_rules_are_refused(tmp_path):
    """A score hangs on the rules of postprocessing and on who judges: so does the key."""
    offered(tmp_path, {1: 0.5, 2: 0.9}, key="rules of before")
    best = offered(tmp_path, {3: 0.4, 4: 0.3})
    with pytest.raises(RefusedError, match=r"4 validations 2 are ranked by today's rules"):
        best.networks(4)
    # And who puts the rules back finds what was kept by them.
    before = offered(tmp_path, {3: 0.7, 4: 0.6}, key="rules of before")
    assert steps_of(before, 4) == [2, 3]


def test_a_resumed_training_offers_some_once_more(tmp_path):
    offered(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7})
    assert steps_of(offered(tmp_path, {2: 0.9, 3: 0.7, 4: 0.6}), 4) == [2, 3]


def test_networks_of_another_training_are_not_mixed_in(tmp_path):
    offered(tmp_path, {1: 0.9, 2: 0.9})
    best = offered(tmp_path, {7: 0.1}, key="other")
    assert steps_of(best, 1) == [7] and len(list(tmp_path.glob("best/*/step*"))) == 3


def test_networks_that_are_gone_or_damaged_are_refused(tmp_path):
    best = offered(tmp_path, {1: 0.5, 2: 0.9})
    (path,) = tmp_path.glob("best/*/step2.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RefusedError, match=r"2 best networks .* the first 0 are there"):
        best.networks(2)
    with pytest.raises(RefusedError, match=r"3 best networks .* the first 2 are there"):
        offered(tmp_path / "more", {1: 0.5, 2: 0.9, 3: 0.1})
        Best(tmp_path / "more", "key", 3).networks(3)  # raised afterwards


def test_better_ones_thrown_away_are_not_replaced_by_worse_where_more_are_kept_later(tmp_path):
    offered(tmp_path, {1: 0.5, 2: 0.6, 3: 0.9, 4: 0.8})  # 1 and 2 are gone
    best = offered(tmp_path, {5: 0.3, 6: 0.2}, count=4)
    with pytest.raises(RefusedError, match=r"4 best .* the first 2 are .*keep_best=2"):
        best.networks(6)
    assert steps_of(Best(tmp_path, "key", 2), 6) == [3, 4]
    assert steps_of(offered(tmp_path, {7: 0.7}, count=3), 7) == [3, 4, 7]


def test_names_in_a_bundle():
    names = member_files("fold3.safetensors", 3)
    assert names == ["fold3.safetensors", "fold3-2.safetensors", "fold3-3.safetensors"]
    assert {fold_file(name) for name in names} == {"fold3.safetensors"}


def test_a_bundle_of_each_folds_best_networks(tmp_path):
    for i in range(2):
        write_patient(tmp_path / "data", f"A-{i}", "plain")
    data = DataSettings(root=str(tmp_path / "data"), region="centre", folds=2)
    settings = short_training(steps=3, validate_every=1, keep_best=2)
    settings = settings.model_copy(update={"data": data})
    run = tmp_path / "run"
    train_segmentation_bundle(settings, run, [0])
    bundle = load_bundle(train_segmentation_bundle(settings, run, [1]))  # the other stays
    part = bundle.manifest.segmentation
    assert part.files == [
        *("fold0.safetensors", "fold0-2.safetensors"),
        *("fold1.safetensors", "fold1-2.safetensors"),
    ]
    assert part.seen[0] == part.seen[1] != part.seen[2] == part.seen[3]
    ensemble = load_ensemble(bundle, torch.device("cpu"), InferenceSettings())
    assert len(ensemble.members) == 4
    first, second = (bundle.tensors(name) for name in part.files[:2])
    assert any(not torch.equal(first[name], second[name]) for name in first)
