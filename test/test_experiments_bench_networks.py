import pytest
import torch
from rich.console import Console

from hmvnet.cli import main
from hmvnet.experiments.bench_networks import network_table

SMALL = "hmvnet channels=8 depths=1,1 convs=1,0 mlp_ratios=2,2 head_channels=8"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_network_has_a_row_with_its_cost_and_the_first_is_one(precision):
    console = Console(width=80, record=True, quiet=False)
    names = [SMALL, "unet3d width=2"]
    table = network_table(names, 32, 1, console, torch.device("cpu"), precision, batch=2)
    assert table.title and table.title.startswith(f"2 x 32^3, {precision}, CPU")
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == names and columns[4][0] == columns[7][0] == "1.0"
    assert all(float(cell) > 0 for column in (1, 2, 5) for cell in columns[column])
    console.print(table)
    shown = "".join(console.export_text().split())
    assert "width=2" in shown and "…" not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "fp8"], "expected fp32 or bf16"),
        (["--device", "tpu"], "expected auto, cpu, cuda"),
        (["--names", "hmvnet,resnet"], "unknown network 'resnet'"),
    ],
)
def test_what_cannot_be_timed_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "networks", "--patch", "32", "--repeats", "1", *words])
    assert ended.value.code == 2 and said in " ".join(capsys.readouterr().err.split())


def test_options_may_hold_commas(capsys):
    names = f"{SMALL},unet3d width=2,unet3d"
    with pytest.raises(SystemExit) as ended:
        main(["bench", "networks", "--patch", "32", "--repeats", "1", "--names", names])
    assert ended.value.code == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "depths=1,1" in shown and shown.count("unet3d") == 2
