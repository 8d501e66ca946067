"""Settings: one XML file, checked by pydantic, any value overridable by name."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from hmvnet.reading.records import HECKTOR, ClinicalSchema


def _split(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _options(value: Any) -> Any:
    """``"channels=16 depths=2,2,2,2"`` to a dict of ints, floats, tuples or texts."""
    if not isinstance(value, str):
        return value
    pairs = (item.partition("=") for item in value.split())
    return {key: _parse_option(text) for key, _, text in pairs}


def _parse_option(text: str) -> Any:
    if "," in text:
        return tuple(_parse_option(part) for part in text.split(","))
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


Triple = Annotated[tuple[float, float, float], BeforeValidator(_split)]
Shape = Annotated[tuple[int, int, int], BeforeValidator(_split)]
Window = Annotated[tuple[float, float], BeforeValidator(_split)]
Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
Options = Annotated[dict[str, Any], BeforeValidator(_options)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Section):
    root: str = ""
    cache: str = ""
    folds: int = Field(5, ge=2)
    fold_by: Literal["stratified", "leave-one-centre-out"] = "stratified"
    region: Literal["head-neck", "centre"] = "head-neck"
    extra_root: str = ""
    extra_region: Literal["head-neck", "centre"] = "centre"
    note: str = ""
    seed: int = 0


class PreprocessingSettings(_Section):
    spacing_mm: float = Field(1.0, gt=0)
    size_mm: Triple = (200.0, 200.0, 310.0)
    hu_window: Window = (-200.0, 300.0)
    suv_window: Window = (0.0, 20.0)


class NetworkSettings(_Section):
    name: str = "hmvnet"
    options: Options = {}


class TrainingSettings(_Section):
    steps: int = Field(3000, ge=1)
    batch_size: int = Field(1, ge=1)
    patch_size: Shape = (96, 96, 96)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float = Field(5.0, gt=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    tumour_fraction: Probability = 0.7
    focal_weight: float = Field(0.0, ge=0)
    absent_weight: float = Field(0.0, ge=0)
    frozen_norms: bool = False
    freeze_norms_at: float = Field(0.5, gt=0, le=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    initial_weights: str = ""
    seed: int = 0


class AugmentationSettings(_Section):
    flip: Probability = 0.5
    affine: Probability = 0.5
    rotation_degrees: float = Field(15.0, ge=0)
    scale: float = Field(0.15, ge=0, lt=1)
    elastic: Probability = 0.1
    elastic_mm: float = Field(6.0, ge=0)
    intensity: Probability = 0.3
    noise: Probability = 0.2
    blur: Probability = 0.15
    low_resolution: Probability = 0.15
    misalignment: Probability = 0.3
    misalignment_mm: float = Field(4.0, ge=0)
    drop_modality: Probability = 0.03


class PostprocessingSettings(_Section):
    threshold_gtvp: Probability = 0.5
    threshold_gtvn: Probability = 0.5
    min_ml_gtvp: float = Field(0.2, ge=0)
    min_ml_gtvn: float = Field(0.1, ge=0)
    confident: Probability = 0.8
    one_primary: bool = True
    airway_mm: float = Field(20.0, ge=0)

    def for_region(self, region: str) -> PostprocessingSettings:
        """Without the rules on the head and neck's anatomy where the region is not that."""
        return self if region == "head-neck" else self.model_copy(update={"airway_mm": 0.0})


class ClinicalSettings(_Section):
    """The health records' columns; none: HECKTOR's. ``tables``: a cohort without images."""

    tables: Words = ()
    patient: str = "PatientID"
    time: str = "RFS"
    event: str = "Relapse"
    follow_up: str = ""
    columns: dict[str, dict[str, Any]] = {}

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if columns:
            ClinicalSchema.from_dict(columns)
        return columns

    @property
    def record_schema(self) -> ClinicalSchema:
        """The columns as a schema."""
        return ClinicalSchema.from_dict(self.columns) if self.columns else HECKTOR


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
    members: int = Field(5, ge=1)
    direct_weight: Probability = 0.25
    linear_weight: Probability = 0.5
    direct_features: Words = ESTABLISHED_FEATURES
    steps: int = Field(150, ge=1)
    batch_size: int = Field(64, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    ranking_weight: float = Field(0.5, ge=0)
    image_spacing_mm: float = Field(4.0, gt=0)
    image_width: int = Field(16, ge=1)
    branches: Words = ("image", "table", "lesions")
    bags: int = Field(25, ge=1)
    max_correlation: float = Field(0.9, gt=0, le=1)
    min_concordance: float = Field(0.57, ge=0.5, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _shares(self) -> PrognosisSettings:
        if (named := self.direct_weight + self.linear_weight) > 1:
            raise ValueError(
                f"direct_weight {self.direct_weight:g} and linear_weight {self.linear_weight:g} "
                f"are shares of the risk, and sum to {named:g}: lower one of them"
            )
        return self


class InferenceSettings(_Section):
    flips: bool = False
    time_budget_s: float = Field(240.0, gt=0)
    precision: Literal["auto", "32", "bf16"] = "auto"
    output: Literal["risk", "days"] = "risk"
    backend: Literal["torch", "onnx"] = "torch"


class Settings(_Section):
    """All of ``config.xml``; each section is documented there."""

    data: DataSettings = DataSettings()
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    postprocessing: PostprocessingSettings = PostprocessingSettings()
    clinical: ClinicalSettings = ClinicalSettings()
    prognosis: PrognosisSettings = PrognosisSettings()
    inference: InferenceSettings = InferenceSettings()


def load_settings(path: Path | None = None, overrides: Iterable[str] = ()) -> Settings:
    """Settings of an XML file (or the defaults), with ``section.name=value`` overrides.

    Raises:
        ValueError: the file or an override is malformed, names an unknown setting, or holds a
            value out of range; the message names it.
    """
    values = _read_xml(path) if path else {}
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise ValueError(f"override '{override}': expected section.name=value")
        values.setdefault(section, {})[key] = value.strip()
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        source = path.name if path else "settings"
        raise ValueError(f"{source}: {where}: {first['msg']} (found {first['input']!r})") from error


def _read_xml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not a readable XML file: {error}") from error
    if root.tag != "hmvnet":
        raise ValueError(f"{path}: root element <{root.tag}>, expected <hmvnet>")
    values: dict[str, dict[str, Any]] = {}
    for section in root:
        values[section.tag] = {
            item.tag: (item.text or "").strip() for item in section if item.tag != "column"
        }
        columns = {item.get("name", ""): _column(item) for item in section if item.tag == "column"}
        if columns:
            values[section.tag]["columns"] = columns
    return values


def _column(item: ElementTree.Element) -> dict[str, Any]:
    """``<column name="Age" kind="numeric" other_units="months:0.0833"/>`` to a plain dict."""
    raw: dict[str, Any] = {k: v for k, v in item.attrib.items() if k != "name"}
    for key in ("aliases", "other_units"):
        if key in raw:
            pairs = (pair.partition(":") for pair in raw[key].split(","))
            raw[key] = {name.strip(): value.strip() for name, _, value in pairs}
    return raw
