"""What runs in nnU-Net's process: planning, training, prediction, all of them its own.

``python -m hmvnet.experiments.nnunet_job JOB`` reads one line of JSON, the order, and writes lines
of JSON: progress (``done``, ``total``, ``note``), lines to be shown (``line``), and at the end
``result``, ``refused`` or ``unfinished``. Started by ``hmvnet.experiments.nnunet_process``, which
sets nnU-Net's environment. nnU-Net is imported where it is used: the processes that it starts
import this module as well.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, TextIO

from hmvnet.exits import Exit, RefusedError, UnfinishedError
from hmvnet.files import replacing
from hmvnet.state import write_state

PLANNERS = {  # name of the preset: nnU-Net's planner, and what its plans are called
    "ResEncM": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "ResEncL": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "ResEncXL": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
    "default": ("ExperimentPlanner", "nnUNetPlans"),
}
FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
SAVE_EVERY_S = 300.0
Say = Callable[..., None]


# --- planning ------------------------------------------------------------------------------------


def plan(
    say: Say,
    number: int,
    preset: str,
    configuration: str,
    gpu_memory_gb: float | None = None,
    spacing_mm: Sequence[float] | None = None,
    images: bool = True,
) -> dict[str, Any]:
    """Its fingerprint of the data, its plans, and its preprocessed images.

    Args:
        number: of the data set.
        spacing_mm: z, y, x; None: as it plans.
        images: whether they are preprocessed, too.

    Raises:
        RefusedError: the plans have no such configuration.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    planner, name = PLANNERS[preset]
    say(line="nnU-Net: fingerprint of the data")
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    say(line="nnU-Net: plans")
    plan_experiments([number], planner, gpu_memory_gb, overwrite_target_spacing=spacing_mm)
    found = _json(preprocessed(number) / f"{name}.json")["configurations"]
    if configuration not in found:
        raise RefusedError(
            f"nnU-Net's plans for these images have no configuration '{configuration}', found "
            f"{', '.join(found)}"
        )
    if images:
        say(line="nnU-Net: preprocesses the images")
        preprocess([number], name, (configuration,), (1,))
    own = found[configuration]
    return {key: own.get(key) for key in ("spacing", "patch_size", "batch_size")}


# --- training ------------------------------------------------------------------------------------


def train(
    say: Say,
    number: int,
    preset: str,
    configuration: str,
    fold: int,
    steps: int | None = None,
    seconds: float | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Train a fold by its own trainer.

    Args:
        steps, seconds: after which it ends, one of them given. One that was begun goes on.
        deadline: seconds since the epoch; it ends then, with a checkpoint.

    Raises:
        UnfinishedError: it was stopped by the deadline.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Base

    device, (_, name) = _device(), PLANNERS[preset]
    if device.type == "cpu":  # patches made beside would take processors from the training
        os.environ.update(nnUNet_n_proc_DA="0")
    folder = preprocessed(number)
    plans = _json(folder / f"{name}.json") | {"continue_training": False}
    trainer = _trainer(Base)(plans, configuration, fold, _json(folder / "dataset.json"), device)
    trainer.plan_budget(say, steps, seconds, deadline)
    latest = Path(trainer.output_folder) / LATEST
    if latest.is_file():
        try:
            trainer.load_checkpoint(str(latest))
            say(line=f"nnU-Net: fold {fold} goes on from step {trainer.current_epoch}")
        except (RuntimeError, EOFError, KeyError, ValueError) as error:  # of an older run, or cut
            raise RefusedError(f"{latest}: {error}; remove it, and the fold starts anew") from error
    trainer.run_training()
    return {
        "steps": trainer.current_epoch,
        "seconds": trainer.spent,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "model": Path(trainer.output_folder_base).name,
    }


def _trainer(base: type[Any]) -> type[Any]:
    """nnU-Net's trainer with a budget: an epoch is a step, and its poly rate falls step by step.

    Network, loss, optimiser, augmentation, sampling, deep supervision and checkpoints are its own.
    Left out is its validation on patches after every epoch, whose figures choose nothing here (the
    last weights are taken, as nnU-Net takes them), and its validation on whole images at the end,
    in whose place the predictor runs.
    """

    # Its checkpoints name the class, for nnU-Net's own tools.
    class nnUNetTrainer(base):  # noqa: N801
        def plan_budget(
            self, say: Say, steps: int | None, seconds: float | None, deadline: float | None
        ) -> None:
            self.say, self.seconds, self.deadline = say, seconds, deadline
            self.num_epochs, self.num_iterations_per_epoch = steps or sys.maxsize, 1
            self.num_val_iterations_per_epoch = 0
            self.saved = time.monotonic()

        @property
        def spent(self) -> float:
            """Seconds of all steps, kept in its checkpoints."""
            ends, starts = (
                self.logger.get_value(f"epoch_{name}_timestamps", None) for name in ("end", "start")
            )
            return float(sum(end - start for start, end in zip(starts, ends)))

        @property
        def share(self) -> float:
            """How much of the budget is used up, of steps or of time."""
            of_time = self.spent / self.seconds if self.seconds else 0.0
            return min(1.0, max(of_time, self.current_epoch / self.num_epochs))

        def run_training(self) -> None:
            self.on_train_start()
            while self.share < 1:
                self.on_epoch_start()
                self.on_train_epoch_start()
                self.on_train_epoch_end([self.train_step(next(self.dataloader_train))])
                self.on_epoch_end()
            self.on_train_end()

        def on_train_epoch_start(self) -> None:
            self.network.train()
            rate = self.initial_lr * (1 - self.share) ** 0.9  # its PolyLRScheduler's
            for group in self.optimizer.param_groups:
                group["lr"] = rate

        def on_epoch_end(self) -> None:
            self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
            loss = self.logger.get_value("train_losses", -1)
            self.print_to_log_file(f"step {self.current_epoch}: loss {loss:.4f}")
            late = self.deadline is not None and time.time() > self.deadline
            if late or time.monotonic() - self.saved > SAVE_EVERY_S:
                self.save_checkpoint(str(Path(self.output_folder) / LATEST))
                self.saved = time.monotonic()
            self.current_epoch += 1
            self.tell(float(loss))
            if late and self.share < 1:
                raise UnfinishedError(
                    f"{self.output_folder}: stopped after step {self.current_epoch}, "
                    f"{self.share:.0%} of the budget; the same command goes on from there"
                )

        def tell(self, loss: float) -> None:
            note, step = f"loss {loss:.3f}", self.current_epoch
            if self.seconds:
                spent = min(round(self.spent), round(self.seconds))
                say_so = {"done": spent, "total": round(self.seconds)}
                self.say(**say_so, note=f"seconds, step {step}, {note}")
            else:
                self.say(done=step, total=self.num_epochs, note=note)

        def save_checkpoint(self, filename: str) -> None:
            with replacing(Path(filename)) as temporary:
                super().save_checkpoint(str(temporary))

        def plot_network_architecture(self) -> None:
            pass

    return nnUNetTrainer


# --- prediction ----------------------------------------------------------------------------------


def predict(
    say: Say,
    model: str,
    folds: Sequence[int],
    cases: Sequence[Mapping[str, Any]],
    mirroring: bool,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Masks of its own predictor; several folds' logits are averaged, as it does.

    Args:
        model: folder of the trained model.
        cases: ``images``, CT and PET, ``out``, where the mask goes, without ``.nii.gz``, and
            ``key``. Beside each mask goes a state ``.json`` of that key: ``seconds`` of the
            network, ``peak_mb``.

    Raises:
        UnfinishedError: it was stopped by the deadline.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from hmvnet.experiments.compare_table import peak_mb

    predictor = nnUNetPredictor(use_mirroring=mirroring, device=_device(), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, tuple(folds), FINAL)
    network = predictor.predict_logits_from_preprocessed_data
    seconds: list[float] = []

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        logits = network(*arguments, **named).cpu()
        seconds.append(time.perf_counter() - began)
        return logits

    predictor.predict_logits_from_preprocessed_data = timed
    for done, case in enumerate(cases, 1):
        out = Path(case["out"])
        if deadline is not None and time.time() > deadline:
            raise UnfinishedError(f"{out.parent}: {done - 1} of {len(cases)} patients predicted")
        out.parent.mkdir(parents=True, exist_ok=True)
        with peak_mb() as peak:
            predictor.predict_from_files_sequential(
                [list(case["images"])], [str(out)], save_probabilities=False, overwrite=True
            )
            figures = {"seconds": seconds[-1], "peak_mb": peak()}
        write_state(out.with_name(f"{out.name}.json"), case["key"], figures)
        say(done=done, total=len(cases))
    return {}


def bench(say: Say, **order: Any) -> dict[str, Any]:
    """``hmvnet.experiments.bench_nnunet``'s job."""
    from hmvnet.experiments.bench_nnunet import predict_case

    return predict_case(say, **order)


# --- the process ---------------------------------------------------------------------------------

JOBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "plan": plan,
    "train": train,
    "predict": predict,
    "bench": bench,
}


def main(job: str) -> int:
    """Do what the first line of standard input orders."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    orders = os.fdopen(os.dup(0), "rb", buffering=0)
    with open(os.devnull, "rb") as nothing:  # processes that nnU-Net starts have no part in it
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what nnU-Net prints goes to the log
    order = json.loads(orders.readline())
    threading.Thread(target=_end_with_parent, args=(orders,), daemon=True).start()

    def say(**message: Any) -> None:
        _say(lines, message)

    try:
        say(result=JOBS[job](say, **order))
    except RefusedError as error:
        say(refused=str(error))
        return Exit.REFUSED
    except UnfinishedError as error:
        say(unfinished=str(error))
        return Exit.UNFINISHED
    return Exit.OK


def _say(lines: TextIO, message: Mapping[str, Any]) -> None:
    with suppress(BrokenPipeError):
        print(json.dumps(message), file=lines, flush=True)


def _end_with_parent(orders: RawIOBase) -> None:
    """The parent holds the other end of standard input as long as it lives."""
    while orders.read(1):
        pass
    os._exit(Exit.TERMINATED)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def preprocessed(number: int) -> Path:
    """Where nnU-Net keeps the plans and the preprocessed images of a data set."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    return Path(nnUNet_preprocessed) / convert_id_to_dataset_name(number)


def _device() -> Any:
    from hmvnet.segmentation.ensemble import pick_device

    return pick_device()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
