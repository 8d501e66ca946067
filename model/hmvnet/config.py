"""Settings, said once: fields with bounds and descriptions."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from hmvnet.reading.outcomes import EVENT_COLUMN, ID_COLUMN, TIME_COLUMN, TableNames
from hmvnet.reading.records import SCHEMAS, ClinicalSchema


def _split(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _words(value: Any) -> Any:
    """As ``_split``, but what is in quotes is one word: names of files may have blanks."""
    if not isinstance(value, str):
        return value
    found = list(re.finditer(r"\"((?:[^\"]|\"\")*)\"|'([^']*)'|([^\s,]+)", value))
    if any(one[3] and one[3][0] in "\"'" for one in found):
        raise ValueError(f"{value}: a quote without an end")
    return [
        word.replace('""', '"') if (word := one[1]) is not None else one[2] or one[3] or ""
        for one in found
    ]


def _options(value: Any) -> Any:
    """``"channels=16 depths=2,2,2,2"`` to a dict of ints, floats, tuples or texts."""
    if not isinstance(value, str):
        return value
    if stray := [item for item in value.split() if "=" not in item]:
        raise ValueError(f"'{stray[0]}' is no option, expected name=value")
    pairs = (item.partition("=") for item in value.split())
    return {key: _parse_option(text) for key, _, text in pairs}


def _parse_option(text: str) -> Any:
    if "," in text:
        return tuple(_parse_option(part) for part in text.removesuffix(",").split(","))
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _event_codes(value: Any) -> Any:
    """``"1=0, 2=1"`` to what each code of an event stands for, "0" or "1"."""
    if isinstance(value, dict):
        return {str(code): str(stands_for) for code, stands_for in value.items()}
    if not isinstance(value, str):
        return value
    codes: dict[str, str] = {}
    for pair in re.split(r"(?<==[01])[,\s]+", re.sub(r"\s*=\s*", "=", value.strip())):
        code, equals, stands_for = pair.partition("=")
        if pair and (not code or code in codes or stands_for not in ("0", "1")):
            raise ValueError(f"'{pair}': expected code=0 (none) or code=1 (an event), a code once")
        codes |= {code: stands_for} if equals else {}
    return codes


def _mirroring(value: Any) -> Any:
    """``true`` and ``false``, as the setting was once said."""
    known = {True: "left-right", "true": "left-right", False: "none", "false": "none"}
    return known.get(value, value) if isinstance(value, (bool, str)) else value


def _rising(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError(f"{window[0]:g} is not below {window[1]:g}")
    return window


Length = Annotated[float, Field(gt=0)]
Triple = Annotated[tuple[Length, Length, Length], BeforeValidator(_split)]
Voxels = Annotated[int, Field(ge=1)]
Shape = Annotated[tuple[Voxels, Voxels, Voxels], BeforeValidator(_split)]
Window = Annotated[tuple[float, float], BeforeValidator(_split), AfterValidator(_rising)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Branches = Annotated[tuple[Literal["image", "table", "lesions"], ...], BeforeValidator(_split)]
Options = Annotated[dict[str, Any], BeforeValidator(_options)]
EventCodes = Annotated[dict[str, str], BeforeValidator(_event_codes)]
Presence = Annotated[tuple[float, float, float, float], BeforeValidator(_split)]
Mirroring = Annotated[Literal["none", "left-right", "all"], BeforeValidator(_mirroring)]
Windows = Literal["never", "always", "both"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
RegionName = Literal["head-neck", "centre"]
InterfaceName = Literal["auto", "2025", "2026"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Section):
    """Where the patients are, and how they are split into folds."""

    root: str = Field(
        "",
        description="Folder of the patients: HECKTOR 2026, 2025 or 2022, nnU-Net, or a folder a "
        "patient.",
    )
    cache: str = Field(
        "",
        description="Folder of preprocessed volumes and described lesions; empty: cache in the "
        "run's folder.",
    )
    folds: int = Field(
        5, ge=2, description="Parts of the cross-validation; not asked with leave-one-centre-out."
    )
    fold_by: Literal["stratified", "leave-one-centre-out"] = Field(
        "stratified",
        description="How patients are dealt to folds: stratified by centre and event, or a fold a "
        "centre.",
    )
    region: RegionName = Field(
        "head-neck",
        description="Where the working region lies; centre: mid-body, for scans that hold no head, "
        "and no rules of the head and neck's anatomy.",
    )
    interface: InterfaceName = Field(
        "auto",
        description="Which year's platform the container writes for; auto: by its input. Kept in "
        "the bundle.",
    )
    extra_root: str = Field(
        "",
        description="A second folder of patients, trained on in every fold and never scored; "
        "empty: none.",
    )
    extra_region: RegionName = Field(
        "centre", description="As region, of the patients of extra_root."
    )
    note: str = Field(
        "",
        description="What the data is, for the bundle's manifest; empty: the names of the folders.",
    )
    seed: Seed = Field(0, description="Seed of the folds.")


class PreprocessingSettings(_Section):
    """From the scanner's images to what the networks see; kept in the bundle for inference."""

    spacing_mm: float = Field(
        1.0, gt=0, description="Edge of a voxel of the working grid, in mm along every axis."
    )
    size_mm: Triple = Field(
        (200.0, 200.0, 310.0), description="Size of the working region in mm: x, y, z."
    )
    hu_window: Window = Field(
        (-200.0, 300.0), description="CT is clipped to these HU and scaled to [0, 1]."
    )
    suv_window: Window = Field(
        (0.0, 20.0), description="PET is clipped to these SUV and scaled to [-1, 1]."
    )


class NetworkSettings(_Section):
    """The segmentation network."""

    name: str = Field(
        "hmvnet",
        min_length=1,
        description="Which one: hmvnet (as hmvnet-s; hmvnet-b and hmvnet-l are wider), segresnet, "
        "swinunetr, resenc-unet, stu-net, unet3d, unetr, or nnunet, as an import names it.",
    )
    options: Options = Field(
        {},
        description="What the network's own function takes, e.g. channels=16 depths=2,2,2,2; "
        "empty: its defaults.",
    )


class TrainingSettings(_Section):
    """Training the segmentation network (Task 1)."""

    steps: int = Field(3000, ge=1, description="Steps of the optimiser.")
    batch_size: int = Field(
        1,
        ge=1,
        description="Patches that go through the network together, over all processes; a multiple "
        "of their number.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Batches a step, whose gradients are added up: a step sees batch_size times "
        "accumulate patches, in the memory of batch_size.",
    )
    patch_size: Shape = Field(
        (96, 96, 96),
        description="Size of a patch in voxels: z, y, x; also of the sliding windows of peers.",
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="Peak learning rate of AdamW; it falls to 1% of this on a cosine."
    )
    weight_decay: float = Field(
        1e-4, ge=0, description="Weight decay of AdamW; norms and biases have none."
    )
    warmup_steps: int = Field(
        100, ge=0, description="Steps in which the learning rate rises linearly to its peak."
    )
    clip_norm: float = Field(5.0, gt=0, description="Longer gradients are scaled to this norm.")
    ema_decay: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="Decay a step of the moving average of the weights, which is validated and "
        "kept; 0: the last weights.",
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        "auto",
        description="Arithmetic; auto: bf16 on a GPU that has it, fp16 on others, full on CPUs.",
    )
    tumour_fraction: Probability = Field(
        0.7,
        description="Chance that a patch is centred near a tumour voxel; the others lie anywhere.",
    )
    focal_weight: float = Field(
        0.0, ge=0, description="Weight of a focal loss beside Dice and cross-entropy; 0: none."
    )
    absent_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of Dice where a patch lacks the class; presses on false positives, for "
        "networks that have learnt to find; 0: none.",
    )
    frozen_norms: bool = Field(
        False,
        description="Keep BatchNorm's statistics of initial_weights from the first step on.",
    )
    freeze_norms_at: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the steps after which BatchNorm's statistics are settled and kept, "
        "as inference uses them; 1: never during training.",
    )
    validate_every: int = Field(
        500, ge=1, description="Steps from one validation to the next; the last step has one, too."
    )
    checkpoint_every: int = Field(
        100, ge=1, description="Steps from one checkpoint to the next; training resumes from it."
    )
    keep_best: int = Field(
        0,
        ge=0,
        description="Networks of a fold that go into the bundle, those of its best validations, "
        "chosen on the fold's validation patients; 0: the last alone, chosen on nobody.",
    )
    initial_weights: str = Field(
        "",
        description="Folder of a bundle to start from; tensors of the same name and shape are "
        "taken over; empty: start from nothing.",
    )
    seed: Seed = Field(0, description="Seed of weights, patches and augmentation.")
    workers: int = Field(
        -1,
        ge=-1,
        description="How many draw and augment patches ahead; 0: drawn in the loop; -1: a core "
        "each but one beside a GPU, at most 12, and 0 on a CPU. Patches are the same.",
    )
    workers_are: Literal["auto", "threads", "processes"] = Field(
        "auto",
        description="What draws patches ahead; auto: processes beside a GPU, threads elsewhere.",
    )
    cuda_graph: bool = Field(
        True,
        description="On one GPU, record the kernels of a step's forward and backward pass once and "
        "launch them together; where that can't be done, or with accumulate, compile or "
        "checkpoint_activations, they are launched one by one.",
    )
    log_every: int = Field(
        20,
        ge=1,
        description="Steps from one reading of the losses on a GPU to the next, for which it is "
        "waited; losses.csv has every step all the same. On a CPU they are read at each.",
    )
    compile: Literal["none", "inductor", "eager"] = Field(
        "none",
        description="Backend of torch.compile for the network: inductor needs a C++ compiler and "
        "minutes before the first step; eager only tries whether it can be traced.",
    )
    checkpoint_activations: bool = Field(
        False,
        description="Compute the stages' activations a second time on the way back in place of "
        "keeping them: less memory, about a third more time. HM-VNet only.",
    )

    def course(self, without: Set[str] = frozenset()) -> dict[str, Any]:
        """The settings on which the course of a training hangs, for its key.

        Without those that change only how it is computed; those that came later count where they
        are used, so that older trainings go on.

        Args:
            without: others on which the key is not to hang.
        """
        how = {
            "workers",
            "workers_are",
            "log_every",
            "cuda_graph",
            "compile",
            "checkpoint_activations",
        }
        later = {"accumulate": 1, "keep_best": 0}
        unused = {name for name, value in later.items() if getattr(self, name) == value}
        return self.model_dump(mode="json", exclude=how | unused | without)


class AugmentationSettings(_Section):
    """Random changes to training patches; a chance is that of one patch to be changed so."""

    flip: Probability = Field(0.5, description="Chance of a left-right flip.")
    affine: Probability = Field(0.5, description="Chance of a rotation and scaling.")
    rotation_degrees: float = Field(
        15.0, ge=0, description="Largest rotation about each axis, in degrees either way."
    )
    scale: float = Field(
        0.15, ge=0, lt=1, description="Largest change of size, as a share either way."
    )
    elastic: Probability = Field(0.1, description="Chance of a smooth deformation.")
    elastic_mm: float = Field(
        6.0,
        ge=0,
        description="Twice the standard deviation of the deformation along each axis, in voxels: "
        "mm where spacing_mm is 1.",
    )
    intensity: Probability = Field(
        0.3, description="Chance of a change of gamma, gain and offset; CT and PET apart."
    )
    noise: Probability = Field(0.2, description="Chance of Gaussian noise; CT and PET apart.")
    blur: Probability = Field(0.15, description="Chance of a Gaussian blur; CT and PET apart.")
    low_resolution: Probability = Field(
        0.15, description="Chance of 1.5 to 3 times larger voxels; CT and PET apart."
    )
    misalignment: Probability = Field(0.3, description="Chance of a shift of PET against CT.")
    misalignment_mm: float = Field(
        4.0,
        ge=0,
        description="Largest such shift along each axis, in voxels: mm where spacing_mm is 1.",
    )
    drop_modality: Probability = Field(
        0.03, description="Chance that CT or PET is replaced by air."
    )


class PostprocessingSettings(_Section):
    """From probabilities to lesions; kept in the bundle, and chosen by hmvnet segmentation tune."""

    threshold_gtvp: Probability = Field(
        0.5,
        description="Least probability of a GTVp voxel, GTVp being likelier than GTVn; 0: the "
        "likeliest class.",
    )
    threshold_gtvn: Probability = Field(
        0.5,
        description="Least probability of a GTVn voxel, GTVn being likelier than GTVp; 0: the "
        "likeliest class.",
    )
    min_ml_gtvp: float = Field(
        0.2, ge=0, description="Smaller GTVp lesions are removed, in mL; 0: none are."
    )
    min_ml_gtvn: float = Field(
        0.1, ge=0, description="Smaller GTVn lesions are removed, in mL; 0: none are."
    )
    confident: Probability = Field(
        0.8,
        description="Where the rules leave no lesion, the likeliest stays if its peak probability "
        "is at least this.",
    )
    cleanup: bool = Field(
        True,
        description="Fill holes, clear what lies outside the body, give fragments of one class "
        "the name of the lesion that they lie in.",
    )
    one_primary: bool = Field(
        True,
        description="Keep the GTVp with most probability times SUV; others become GTVn, or vanish.",
    )
    airway_mm: float = Field(
        20.0,
        ge=0,
        description="Primaries lie this near to the airway, and no lesion in the brain; 0: anatomy "
        "is not asked.",
    )

    min_suv_peak_gtvp: float = Field(
        0.0, ge=0, description="GTVp lesions of a lower SUVpeak are removed; 0: none are."
    )
    min_suv_peak_gtvn: float = Field(
        0.0, ge=0, description="GTVn lesions of a lower SUVpeak are removed; 0: none are."
    )
    presence_gtvp: Presence = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="Of the chance that a patient has a GTVp where one is found: intercept, and "
        "weights of the log volume (mL), the logit of the mean probability and the log SUVpeak of "
        "its likeliest lesion; zeros: not asked.",
    )
    presence_gtvn: Presence = Field((0.0, 0.0, 0.0, 0.0), description="As presence_gtvp, of GTVn.")
    least_presence_gtvp: Probability = Field(
        0.0, description="Where that chance is lower, every GTVp is removed; 0: never."
    )
    least_presence_gtvn: Probability = Field(0.0, description="As least_presence_gtvp, of GTVn.")

    def for_region(self, region: str) -> PostprocessingSettings:
        """Without the rules on the head and neck's anatomy where the region is not that."""
        return self if region == "head-neck" else self.model_copy(update={"airway_mm": 0.0})


class ClinicalSettings(_Section):
    """The health records and outcomes; tables are named for a cohort that has no images."""

    tables: Words = Field(
        (),
        description="CSV or Excel files under data.root, the outcome among them, joined by "
        "patient, in quotes where a name has blanks; empty: a cohort with images, and all tables "
        "beside them.",
    )
    patient: str = Field(
        ID_COLUMN,
        min_length=1,
        description="Column of the tables with the patient's name; beside images its usual other "
        "names are known too.",
    )
    time: str = Field(
        TIME_COLUMN, min_length=1, description="Column of the tables with the days to the event."
    )
    event: str = Field(
        EVENT_COLUMN,
        min_length=1,
        description="Column of the tables that says whether there was one: 0/1, yes/no, "
        "true/false or dead/alive.",
    )
    follow_up: str = Field(
        "",
        description="Column of the tables with the days to the last follow-up, where time is given "
        "for events only; empty: time has both.",
    )
    time_unit: Literal["days", "weeks", "months", "years"] = Field(
        "days", description="Unit of the times in the tables; a month has 30.4 days."
    )
    event_codes: EventCodes = Field(
        {},
        description="What other codes of the event stand for, 0 (none) or 1 (an event), e.g. 1=0, "
        "2=1; then no other code is known; empty: those above.",
    )
    start_date: str = Field(
        "",
        description="Column of the tables with the day from which follow-up counts; time and "
        "follow_up are then columns of dates too; empty: they are durations.",
    )
    date_format: str = Field(
        "",
        description="Of those dates, as strptime has it (%d/%m/%Y), or excel for a count of days; "
        "empty: ISO (2020-04-23) and what can only be read in one way.",
    )
    sheet: str = Field(
        "",
        description="Sheet of Excel tables; empty: the only one that is not hidden and holds "
        "something.",
    )
    edition: Literal["2025", "2026"] = Field(
        "2025",
        description="HECKTOR's columns of which year: 2026 has no M-stage, and Treatment 0, 1, 2.",
    )
    columns: dict[str, dict[str, Any]] = Field(
        {},
        description="Columns of the health records that a model may use, an element column each; "
        "empty: HECKTOR's, of clinical.edition.",
        examples=[
            {
                "Age": {
                    "kind": "numeric",
                    "low": 0,
                    "high": 120,
                    "other_units": {"months": 0.0833},
                }
            }
        ],
    )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if columns:
            ClinicalSchema.from_dict(columns)
        return columns

    @property
    def table_names(self) -> TableNames:
        """The columns of tables beside images."""
        return TableNames(
            self.patient,
            self.time,
            self.event,
            self.follow_up,
            dict(self.event_codes),
            self.time_unit,
            self.start_date,
            self.date_format,
            self.sheet,
        )

    @model_validator(mode="after")
    def _consistent(self) -> ClinicalSettings:
        self.table_names  # noqa: B018  refuses what cannot be meant
        return self

    @property
    def record_schema(self) -> ClinicalSchema:
        """The columns as a schema."""
        return ClinicalSchema.from_dict(self.columns) if self.columns else SCHEMAS[self.edition]


# Lesion features known to be prognostic: metabolic volume, lesion glycolysis and uptake, number and
# spread of the lesions, and necrosis. Selecting among some two hundred by univariate concordance in
# a few hundred patients finds chance.
ESTABLISHED_FEATURES = (
    "primary_volume_ml",
    "nodes_volume_ml",
    "total_volume_ml",
    "primary_tlg",
    "total_tlg",
    "total_suv_max",
    "nodes_count",
    "total_dissemination_mm",
    "total_necrosis_fraction",
)


class PrognosisSettings(_Section):
    """Training the survival model (Task 2)."""

    members: int = Field(
        5, ge=1, description="Fusion networks of different seeds, whose risks are averaged."
    )
    inner_folds: int = Field(
        3,
        ge=0,
        description="Folds within the training patients on which the parts of the risk are judged, "
        "and their shares moved from those below; 0: shares as given.",
    )
    direct_weight: Probability = Field(
        0.225,
        description="Share in the risk of ICARE on the named variables, before it is judged; 0: "
        "none.",
    )
    linear_weight: Probability = Field(
        0.45,
        description="Share in the risk of a ridge Cox model on them, alike; 0: none.",
    )
    forest_weight: Probability = Field(
        0.1,
        description="Share in the risk of a random forest on them, alike; 0: none. The networks "
        "have the rest.",
    )
    mtlr_weight: Probability = Field(
        0.0,
        description="Share in the risk of MTLR (multi-task logistic regression) on them, alike; 0: "
        "none.",
    )
    direct_features: Words = Field(
        ESTABLISHED_FEATURES,
        description="Lesion features among the named variables, beside the health record; empty: "
        "all of them.",
    )
    steps: int = Field(
        150,
        ge=1,
        description="Steps of a fusion network's optimiser; 1500 overfit a table of 763 patients.",
    )
    batch_size: int = Field(64, ge=2, description="Patients a step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay of AdamW.")
    ranking_weight: float = Field(
        0.5, ge=0, description="Weight of the ranking loss beside Cox's; 0: none."
    )
    images: Literal["region", "lesions", "none"] = Field(
        "region",
        description="What the image branch is: region, a network on CT, PET and masks of the whole "
        "region; lesions, what the segmentation encoder saw in and around primary and largest "
        "node, in a Cox model beside the named variables; none.",
    )
    crops_weight: Probability = Field(
        0.5,
        description="Share in the risk of the Cox model with the lesions' images, before it is "
        "judged; the other parts keep their proportions. Of prognosis.images=lesions alone.",
    )
    image_spacing_mm: float = Field(
        4.0, gt=0, description="Edge in mm of a voxel of the region that the image branch sees."
    )
    image_width: int = Field(
        16, ge=1, description="Channels of the image branch's first stage; 64: a full ResNet-18."
    )
    branches: Branches = Field(
        ("image", "table", "lesions"),
        min_length=1,
        description="Branches of the fusion network; without lesions nothing of Task 1 is used.",
    )
    bags: int = Field(
        25, ge=1, description="Bootstrap samples that an ICARE model is averaged over."
    )
    max_correlation: float = Field(
        0.9,
        gt=0,
        le=1,
        description="ICARE drops a variable that correlates above this with an earlier one; 1: "
        "keeps all.",
    )
    min_concordance: float = Field(
        0.57,
        ge=0.5,
        lt=1,
        description="ICARE drops a variable of lower concordance; the published 0.53 keeps too "
        "many.",
    )
    seed: Seed = Field(
        0, description="Seed of the networks, of ICARE, and of the folds of a comparison."
    )

    @property
    def network_branches(self) -> tuple[str, ...]:
        """The branches that are parts of the fusion network."""
        whole = self.images == "region" or self.branches == ("image",)
        return tuple(b for b in self.branches if whole or b != "image")

    @property
    def wants_crops(self) -> bool:
        """Whether encoder features of the lesions' crops are wanted; they tell of the lesions."""
        return self.images == "lesions" and {"image", "lesions"} <= set(self.branches)

    @model_validator(mode="after")
    def _shares(self) -> PrognosisSettings:
        if (named := sum(self.named_weights.values())) > 1:
            told = ", ".join(f"{name}_weight {w:g}" for name, w in self.named_weights.items() if w)
            raise ValueError(f"{told}: shares of the risk that sum to {named:g}: lower one of them")
        return self

    @property
    def named_weights(self) -> dict[str, float]:
        """Shares of the models on the named variables, as ``NAMED_MODELS`` names them."""
        return {
            "direct": self.direct_weight,
            "linear": self.linear_weight,
            "forest": self.forest_weight,
            "mtlr": self.mtlr_weight,
        }


class InferenceSettings(_Section):
    """Running a bundle's networks; process.py has options of its own for these."""

    flips: Mirroring = Field(
        "none",
        description="Average with the predictions of mirrored volumes: none; left-right, also said "
        "true; all, along every set of the three axes, for networks that were trained so. Networks "
        "of nnU-Net are mirrored along all axes that they allow.",
    )
    time_budget_s: float = Field(
        240.0,
        gt=0,
        allow_inf_nan=True,
        description="Seconds for the networks of a patient; folds and flips that would not fit are "
        "left out. Survival models and comparisons ask for all of them.",
    )
    precision: Literal["auto", "32", "bf16"] = Field(
        "auto",
        description="Arithmetic; auto: fp16 on a GPU, bf16 on a CPU that multiplies it "
        "(AVX512-BF16), else full. Networks of nnU-Net have full precision on every CPU.",
    )
    windows: Literal["bundle", "never", "always", "both"] = Field(
        "bundle",
        description="Sliding windows of the training patch also where the network may see the "
        "whole region in one pass; both: the mean of the two; bundle: as the bundle says, by what "
        "was better on its validation patients.",
    )
    backend: Literal["torch", "onnx", "openvino"] = Field(
        "torch",
        description="What runs the networks: torch; onnx, ONNX Runtime; openvino, OpenVINO on the "
        "CPU. The latter two need the files of hmvnet export.",
    )

    def without_budget(self) -> InferenceSettings:
        """With time for everything: no network of a mean is left out for being slow."""
        return self.model_copy(update={"time_budget_s": 1e9})


class Settings(_Section):
    """All settings. What a settings file leaves out keeps its default; unknown names are errors.

    A command reads the file that its option config names, if any, and then what the command line
    says: hmvnet segmentation train training.steps=2000. hmvnet settings prints what comes of both.
    No command reads model/config.xml: it shows the defaults.
    """

    data: DataSettings = DataSettings()
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    postprocessing: PostprocessingSettings = PostprocessingSettings()
    clinical: ClinicalSettings = ClinicalSettings()
    prognosis: PrognosisSettings = PrognosisSettings()
    inference: InferenceSettings = InferenceSettings()
