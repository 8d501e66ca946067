"""``hmvnet predict`` and ``hmvnet convert``: one scan or many."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmvnet.cli.options import (
    DeviceOption,
    GoOnOption,
    KeepNamesOption,
    RecordOption,
    SeriesOption,
    SheetOption,
    SuvFactorOption,
    WeightsOption,
    say,
    say_counts,
)
from hmvnet.exits import Exit, RefusedError, fault, leave_where_asked, shown
from hmvnet.progress import print_lines

if TYPE_CHECKING:
    from hmvnet.cohort import Crew


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="a CT file and a PET file; a folder: DICOM, HECKTOR, nnU-Net, BIDS, "
            "grand-challenge input; a zip of DICOM; a CSV of patient, ct, pet, record",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="a folder a patient is made here")
    ] = None,
    weights: WeightsOption = "",
    record: RecordOption = None,
    sheet: SheetOption = "",
    list_: Annotated[
        bool, typer.Option("--list", help="say what is recognised, and do no more")
    ] = False,
    suv_factor: SuvFactorOption = None,
    series: SeriesOption = None,
    keep_names: KeepNamesOption = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="of DICOM: also SEG, report and RTSTRUCT")
    ] = False,
    part: Annotated[
        str, typer.Option(help="a share of the patients, k/n: of job arrays, as 3/8")
    ] = "",
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes on this machine, of many patients")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="a Dask scheduler whose workers predict, as tcp://host:8786")
    ] = "",
    mask: Annotated[
        Path | None,
        typer.Option(help="a corrected mask of one patient: image, RTSTRUCT or SEG"),
    ] = None,
    region: Annotated[
        str, typer.Option(help="head-neck, or centre for scans that hold no head")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a setting in the bundle's place, section.name=value"),
    ] = None,
    device: DeviceOption = "auto",
    picture: Annotated[bool, typer.Option(help="also draw slices and projections")] = True,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page", help="also a page to look at; default: of one patient, not of many"
        ),
    ] = None,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="also a map of how unsure each voxel is")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="write again what is there")] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="keep results of the same files, settings and weights; make the others anew",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit code 4 where a verdict is review")
    ] = False,
) -> int:
    """Segment GTVp and GTVn, measure the lesions, predict the RFS risk."""
    from hmvnet.cohort import (
        CohortResult,
        InTurn,
        Order,
        Outcome,
        part_of,
        predict_cohort,
    )
    from hmvnet.pipeline import load_pipeline
    from hmvnet.progress import show_progress
    from hmvnet.reading.inputs import Asked, find_sources
    from hmvnet.writing.cohort import cohort_lock, is_cohort, record_failures, write_cohort
    from hmvnet.writing.index import INDEX, refuse_foreign, write_index
    from hmvnet.writing.summary import Narrator

    if force and go_on:
        raise RefusedError("--force and --continue exclude each other")
    if scheduler and (workers or mask):
        raise RefusedError("--scheduler goes neither with --workers nor with --mask")
    if scheduler:  # other machines have other working directories
        inputs, output = [p.absolute() for p in inputs], output and output.absolute()
        record = record and record.absolute()
    given = [*(set_ or []), *([f"data.region={region}"] if region else [])]
    asked = Asked(record, True, keep_names, tuple(series or ()), suv_factor, sheet)
    sources = find_sources(inputs, asked)  # refuses before the weights are loaded
    if list_:
        for line in sources.listing():
            print(line)
        return Exit.OK
    if output is None:
        raise RefusedError("--output is missing: a folder in which a folder a patient is made")
    print_lines(sources.told)
    narrator, alone = Narrator(), len(sources) == 1
    listed = not alone or is_cohort(output)  # one of a cohort that is there
    if listed:
        refuse_foreign(output)
    crew: Crew
    if scheduler or (workers and not alone):
        from hmvnet.cluster import Workers

        crew = Workers(weights or None, device, given, count=workers or 0, scheduler=scheduler)
    else:
        crew = InTurn(load_pipeline(weights or None, device, given), narrator if alone else None)
    if crew.manifest.prognosis is None:
        sources = find_sources(inputs, replace(asked, needs_record=False))
    chosen = part_of(sources, part) if part else list(sources)
    ended: list[Outcome] = []

    def begin(there: int) -> None:
        if listed:
            with cohort_lock(output):
                pass  # a disk without locks is said before the work, and not after it
        progress.begin(there)

    def tell(found: Outcome) -> None:
        name, said = found.patient_id, found.prediction
        ended.append(replace(found, prediction=None))
        if alone and said:
            where = str(crew.pipeline.device) if isinstance(crew, InTurn) else ""
            narrator.summary(said, crew.manifest.name, where, [order.output / name])
        else:
            for note in found.notes:  # the summary of one patient has them
                narrator(f"{name}: note: {note}")
            if found.status == "done":
                narrator(f"{name}: {found.lesions} lesions, {found.verdict}")
        if why := found.why or "; ".join(found.problems):
            narrator.problem(f"{name}: {why}")
        progress.advance()

    unwritten: list[str] = []

    def tables(found: CohortResult) -> None:
        share = f"-{part.replace('/', 'of')}" if part and not alone else ""
        patients = {one.patient_id for one in found.outcomes}
        record_failures(patients, found.failures, output, share)
        write_cohort(output)
        try:
            write_index(output)
        except Exception as error:  # the patients' folders are whole
            leave_where_asked()
            narrator.problem(f"{INDEX} not written: {fault(error)}")
            unwritten.append(INDEX)

    page = alone if page is None else page
    order = Order(output, picture, page, dicom, entropy, mask, tuple(given))
    try:
        with show_progress("patients", len(chosen), quiet=alone) as progress:
            result = predict_cohort(
                chosen,
                crew,
                order,
                existing="replace" if force else "skip" if go_on else "refuse",
                strict=strict,
                on_begin=begin,
                on_outcome=tell,
            )
    except BaseException:
        if listed and ended:  # they are to have no row of what was removed meanwhile
            tables(CohortResult(tuple(ended)))
        raise
    for found in result.outcomes:
        if found.status == "skipped" and found.notes:
            print_lines(f"{found.patient_id}: note: {note}" for note in found.notes)
    if listed:
        tables(result)
    code = result.code or (Exit.INCOMPLETE if unwritten else Exit.OK)
    if not alone or result.skipped:
        counts = {
            "predicted": result.done,
            "there already": result.skipped,
            "refused": result.refused,
            "failed": result.failed,
            "incomplete": result.incomplete,
            "to review": result.review,
        }
        said = ", ".join(f"{len(found)} {word}" for word, found in counts.items())
        say(f"{len(chosen)} patients: {said}; in {output}")
    return code


def convert(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="as of predict: DICOM, BIDS, a list")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the data folder to write")],
    record: RecordOption = None,
    sheet: SheetOption = "",
    contour: Annotated[
        list[str] | None,
        typer.Option(help="name=gtvp or name=gtvn, of contours; repeatable; default: usual names"),
    ] = None,
    suv_factor: SuvFactorOption = None,
    series: SeriesOption = None,
    keep_names: KeepNamesOption = False,
    go_on: GoOnOption = False,
) -> int:
    """Write a data folder for training: CT in HU, PET in SUV, RTSTRUCT or SEG as labels."""
    from hmvnet.cohort import check_names
    from hmvnet.imaging.agreement import check_agreement
    from hmvnet.imaging.coarse import Coarse
    from hmvnet.reading.contours import parse_names
    from hmvnet.reading.dicom import Scan
    from hmvnet.reading.inputs import Asked, find_sources
    from hmvnet.writing.dataset import DataFolder, OtherImagesError
    from hmvnet.writing.summary import Narrator

    names = parse_names(contour) if contour else None
    asked = Asked(record, True, keep_names, tuple(series or ()), suv_factor, sheet)
    sources, narrator = find_sources(inputs, asked), Narrator()
    print_lines(sources.told)
    if names and not any(isinstance(source, Scan) for source in sources):
        raise RefusedError(f"--contour is of RTSTRUCT and SEG, and {sources.kind} is no DICOM")
    counts = Counter[str]()
    check_names(sources)
    there = [name for one in sources if (output / (name := one.patient_id)).exists()]
    if there and not go_on:
        raise RefusedError(
            f"{output / there[0]} is there already ({len(there)} of {len(sources)} "
            "patients); --continue goes on with the others"
        )
    folder = DataFolder(output)
    for source in sorted(sources, key=lambda one: one.patient_id not in there):
        try:
            case = source.read_with_truth(names) if isinstance(source, Scan) else source.read()
            findings = check_agreement(case, Coarse.of(case))
            is_new = folder.write(case)
        except RefusedError as error:
            if isinstance(error, OtherImagesError) and sources.kind == "DICOM" and not keep_names:
                raise RefusedError(
                    f"{error}: names of DICOM patients are numbers, which move where patients are "
                    "added; use --keep-names, or another folder"
                ) from error
            narrator.problem(f"{source.patient_id}: {error}")
            counts["refused"] += 1
            continue
        counts["written" if is_new else "there already"] += 1
        truth = "with truth" if case.truth else "without truth"
        narrator(f"{case.patient_id}: {truth}{'' if is_new else ', there already'}")
        for note in (*case.notes, *(finding.text for finding in findings)):
            narrator(f"{case.patient_id}: note: {note}")
    say_counts(counts, len(sources), output)
    if names and names.missing:
        called = ", ".join(map(shown, names.missing))
        narrator.problem(
            f"--contour: no patient has contours of the name {called}, and no label has them; "
            f"remove {output} where that is a slip, and convert anew"
        )
        return Exit.REFUSED
    return Exit.REFUSED if counts["refused"] else Exit.OK
