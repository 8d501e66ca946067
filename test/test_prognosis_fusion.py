import pytest
import torch

from hmvnet.prognosis.fusion import (
    FusionConfig,
    FusionNetwork,
    LesionStandardiser,
    PatientInputs,
)


def inputs(count: int = 4) -> PatientInputs:
    return PatientInputs(
        torch.rand(count, 4, 16, 16, 16), torch.rand(count, 5), torch.rand(count, 7)
    )


@pytest.mark.parametrize(
    "branches", [("image", "table", "lesions"), ("image", "table"), ("lesions",), ("table",)]
)
def test_branches_and_ablations(branches):
    network = FusionNetwork(FusionConfig(5, 7, branches, image_width=2))
    assert network.join(network.branch_outputs(inputs())).shape == (4, 256)
    network(inputs()).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    outputs = network.eval().branch_outputs(inputs())
    widths = {"image": 512, "table": 32, "lesions": 2048}
    assert {k: v.shape[1] for k, v in outputs.items()} == {b: widths[b] for b in branches}


@pytest.mark.parametrize("branches", [(), ("image", "genes")])
def test_unknown_branches(branches):
    with pytest.raises(ValueError, match="branches"):
        FusionConfig(5, 7, branches)


def test_standardiser_is_fitted_on_seen_values_and_fills_the_rest():
    values = torch.tensor([[0.0, 5.0, 3.0], [100.0, torch.nan, 3.0], [1e8, 7.0, 3.0]])
    standardise = LesionStandardiser(3).fit(values)
    z = standardise(values)
    assert torch.isfinite(z).all() and z[:, 0].mean().abs() < 1e-5
    assert z[1, 1] == 0 and (z[:, 2] == 0).all()
    assert torch.isfinite(standardise(torch.full((1, 3), torch.nan))).all()


def test_without_task_1_the_image_branch_sees_no_mask(tmp_path):
    """The ablation must not know the predicted lesions by way of the image's mask channels."""
    network = FusionNetwork(FusionConfig(5, 7, ("image", "table"), image_width=2)).eval()
    seen = inputs()
    other = PatientInputs(seen.image.clone(), seen.table, torch.rand_like(seen.lesions))
    other.image[:, 2:] = 0
    torch.testing.assert_close(network(seen), network(other))
