"""TrainConfig: every number that changes a run, in frozen, strict parts.

A field's default is its *neutral value*. Neutral values never change, because a job's id is the
hash of what differs from them (`identity`): a new field or a changed preset leaves old ids alone.
What the user's experiments used is a preset (`model.presets`), laid over these.

A setting that is dead under the others (`tokenizer.max_abs_dx` in absolute mode) must stay neutral.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model.fields import (
    Count,
    Decay,
    NonNegative,
    Number,
    Part,
    Positive,
    Share,
    flatten,
    outside_identity,
)

NUMERICS_VERSION = 2
"""Raised by hand when the core's numbers change on purpose: every job id changes with it."""


class DataConfig(Part):
    """Which scenes, and how their labels become lanes."""

    roots: Annotated[tuple[str, ...], Field(strict=False)] = outside_identity(
        (), description="CULane and TuSimple roots; none: rendered scenes"
    )
    geometry: str | None = outside_identity(
        None, description="TuSimple label file whose lane shapes the rendered scenes take"
    )
    train_images: Count | Literal["all"] = Field(
        default=1, description="images to fit (overfit size)"
    )
    val_images: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=8, description="held-out images, never of the test list"
    )
    test_images: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=0, description="test images, read once at the end of a conclusion; 0: not read"
    )
    mirror: bool = Field(
        default=False, description="train on the mirror image of every training image too"
    )
    seed: int = Field(
        default=0, description="chooses (rendered: draws) the scenes; apart from the job seed"
    )
    width: Count = Field(default=800, description="input width, px; a multiple of 32")
    height: Count = Field(default=320, description="input height, px; a multiple of 32")
    max_lanes: Count = Field(default=4, description="lane slots per image")
    lane_order: Literal["left_to_right", "ego", "label"] = Field(
        default="left_to_right",
        description="what a lane id means; ego: the same order, about the middle of the image (the "
        "two middle ids are the lines beside the camera where there is room); label: order in the "
        "label file (legacy)",
    )
    above_crop: Literal["cut", "clip"] = Field(
        default="cut", description="points above the crop: cut, or clipped onto its edge (legacy)"
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.width % 32 or self.height % 32:
            raise ValueError("width and height must be multiples of 32 (the pyramid's last stride)")
        if self.roots and self.geometry:
            raise ValueError("geometry has no effect with real data (roots): leave one of them out")
        return self


class BackboneConfig(Part):
    """The frozen feature pyramid: P3 (stride 8), P4 (16), P5 (32)."""

    name: Literal["efficientnet_lite0", "clrernet_dla34", "random"] = Field(
        default="efficientnet_lite0", description="where the frozen features come from"
    )
    checkpoint: str | None = outside_identity(
        None, description="CLRerNet weights, for clrernet_dla34; their content is fingerprinted"
    )
    random_seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="seed of the random pyramid"
    )
    random_channels: Count = Field(default=32, description="channels of the random pyramid")

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        if self.name != "random":
            self.dead(f"backbone.name is {self.name}", "random_seed", "random_channels")
        if (self.name == "clrernet_dla34") != (self.checkpoint is not None):
            raise ValueError("checkpoint and name=clrernet_dla34 go together: give both or neither")
        return self


class TokenizerConfig(Part):
    """How a lane becomes tokens (model/tokenizer.py)."""

    mode: Literal["absolute", "relative_disjoint", "relative_open_loop", "relative_clamped"] = (
        Field(
            default="absolute",
            description="legacy: relative_open_loop (deltas from the true x), relative_clamped "
            "(codes clamped to n_bins - 1)",
        )
    )
    n_bins: Annotated[int, Field(ge=3)] = Field(
        default=200, description="x bins over the width, bin 0 = no point"
    )
    max_abs_dx: Count = Field(default=32, description="largest delta of a relative mode, bins")
    n_rows: Annotated[int, Field(ge=3)] = Field(
        default=40, description="rows T, evenly over the height"
    )
    row_order: Literal["top_down", "bottom_up"] = Field(
        default="bottom_up", description="order of writing"
    )

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        if self.mode == "absolute":
            self.dead("tokenizer.mode is absolute", "max_abs_dx")
        return self


class VisualConfig(Part):
    """What the decoder may look at (model/visual.py)."""

    levels: Literal["p5", "p4p5", "full"] = Field(default="full", description="pyramid levels used")
    stride: Count = Field(default=1, description="keep every stride-th row and column of P3 and P4")
    fold: bool = Field(
        default=False,
        description="one token per P5 cell, of its own features and those of all finer cells in it",
    )
    neck: Annotated[int, Field(ge=0)] = Field(
        default=0, description="trained residual 3x3 convolutions over each level's tokens"
    )
    select: Literal["none", "pool", "topk"] = Field(
        default="none",
        description="learned queries that pool, or the top tokens by a learned score",
    )
    select_tokens: Count = Field(default=250, description="tokens K that pool or topk leaves")
    norm: Literal["layernorm", "standardize", "none"] = Field(
        default="layernorm",
        description="standardize: mean 0, std 1 per channel over the training images",
    )
    scale: Positive = Field(default=1.0, description="factor after the norm")
    residual: bool = Field(default=False, description="h = proj(norm(f)); h + MLP(h)")
    position: Literal["none", "sinusoidal", "learned", "aligned", "weak"] = Field(
        default="sinusoidal",
        description="aligned: keys share one sinusoid with the queries' row and last column; "
        "weak: one period over the image (legacy)",
    )
    level_embedding: bool = Field(
        default=True, description="add a learned vector per pyramid level"
    )

    @model_validator(mode="after")
    def _check(self) -> VisualConfig:
        if self.levels == "p5":
            self.dead("visual.levels is p5", "stride", "fold")
        if self.fold:
            self.dead("visual.fold is true", "stride")
        if self.select == "none":
            self.dead("visual.select is none", "select_tokens")
        return self


class ModelConfig(Part):
    """The decoder (model/decoder.py, model/lanelm.py)."""

    d_model: Count = Field(default=128, description="width of the hidden state")
    n_layers: Count = Field(default=3, description="decoder blocks")
    n_heads: Count = Field(default=4, description="self-attention heads; must divide d_model")
    cross_heads: Count | None = Field(
        default=None, description="cross-attention heads; none: n_heads"
    )
    d_ff: Count = Field(default=256, description="hidden width of the feed-forward part")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="residual dropout rate"
    )
    attention: Literal["plain", "qk_norm"] = Field(
        default="plain",
        description="qk_norm: unit queries and keys times a learned temperature (cross)",
    )
    temperature: Positive = Field(default=16.0, description="initial temperature of qk_norm")
    memory: Literal["concat", "per_level"] = Field(
        default="concat", description="per_level: block i attends to level i only (the paper)"
    )
    order: Literal["self_first", "cross_first"] = Field(
        default="self_first", description="within a block"
    )
    norm: Literal["pre", "post"] = Field(
        default="pre", description="where a block's LayerNorm stands"
    )
    x_scale: Number = Field(default=1.0, description="factor on the x token embedding (legacy 0.3)")
    lane_scale: Number = Field(
        default=1.0, description="factor on the lane id embedding (legacy 15)"
    )
    start: Literal["bos", "leak"] = Field(
        default="bos", description="leak: training feeds the first target, decoding 0 (legacy)"
    )
    decode_shift: bool = Field(
        default=False, description="decoding shifts its input once more (legacy)"
    )
    decode_y_offset: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0, description="rows by which decoding's y input is off (legacy 1)"
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        for name, heads in (
            ("n_heads", self.n_heads),
            ("cross_heads", self.cross_heads or self.n_heads),
        ):
            if self.d_model % heads:
                raise ValueError(f"{name}={heads} must divide d_model={self.d_model}")
        if self.attention == "plain":
            self.dead("model.attention is plain", "temperature")
        return self


class LossConfig(Part):
    """What is minimised (model/loss.py): (1 - w) x cross-entropy + w y cross-entropy."""

    y_weight: Share = Field(default=0.3, description="w; with staged, its last value")
    y_schedule: Literal["fixed", "staged"] = Field(
        default="fixed",
        description="staged: 0 until the running loss stays low, y_first, then a ramp",
    )
    y_threshold: Positive = Field(
        default=0.1, description="running x loss that ends stage 1; of hard targets if softened"
    )
    y_patience: Count = Field(
        default=20, description="steps in a row the running loss must stay there"
    )
    y_first: Share = Field(default=0.1, description="w of stage 2")
    y_hold: Count = Field(default=50, description="steps of stage 2")
    y_ramp: Count = Field(
        default=100, description="steps of the ramp from y_first to y_weight (stage 3)"
    )
    ends: Literal["learned", "ignored"] = Field(
        default="learned",
        description="ignored: rows without a point have no loss, lanes never end (legacy)",
    )
    ends_weight: NonNegative = Field(
        default=1.0, description="weight of rows without a point (pix2seq: 0.1)"
    )
    start_weight: NonNegative = Field(
        default=1.0, description="weight of each lane's first point, which no earlier one tells"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="over all x tokens"
    )
    soft_bins: NonNegative = Field(
        default=0.0, description="std in bins of soft x targets; 0: hard"
    )
    lane_map: NonNegative = Field(
        default=0.0,
        description="weight of what each token says about where in its cell a lane passes, which "
        "trains the neck at every place at once",
    )
    entropy_penalty: NonNegative = Field(
        default=0.0,
        description="weight of cross-attention uniformity in the objective: buys it directly",
    )

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.y_schedule == "fixed":
            names = ("y_threshold", "y_patience", "y_first", "y_hold", "y_ramp")
            self.dead("loss.y_schedule is fixed", *names)
        if self.ends == "ignored":
            self.dead("loss.ends is ignored", "ends_weight")
        if self.soft_bins and self.label_smoothing:
            raise ValueError("soft_bins and label_smoothing both soften the target: choose one")
        return self


class OptimConfig(Part):
    """Steps, rate and clip (model/optim.py)."""

    steps: Count = Field(
        default=500, description="optimiser steps; with one image, one step is one epoch"
    )
    optimizer: Literal["adamw", "adam"] = Field(
        default="adamw", description="adam: weight decay off"
    )
    lr: Positive = Field(default=3e-4, description="peak rate")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="after the warm-up"
    )
    lr_min: NonNegative = Field(default=1e-6, description="floor of cosine")
    warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="steps of linear warm-up")
    clip: Positive | None = Field(default=1.0, description="gradient norm bound; null: none")
    weight_decay: NonNegative = Field(default=0.01, description="AdamW's, on matrices only")
    beta1: Decay = Field(default=0.9, description="first moment's decay")
    beta2: Decay = Field(default=0.999, description="second moment's decay")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast")

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        if self.schedule == "constant":
            self.dead("optim.schedule is constant", "lr_min")
        elif self.lr_min > self.lr:
            raise ValueError(f"lr_min={self.lr_min} must not exceed lr={self.lr}")
        if self.optimizer == "adam":
            self.dead("optim.optimizer is adam", "weight_decay")
        if self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup} must not exceed steps={self.steps}")
        return self


class ExposureConfig(Part):
    """What the decoder reads as its previous tokens while it trains (model/exposure.py)."""

    mode: Literal["teacher_forcing", "scheduled_sampling", "rollout"] = Field(
        default="teacher_forcing",
        description="scheduled_sampling: own free-running tokens with a growing probability; "
        "rollout: own tokens for rollout_rows rows",
    )
    start: Share = Field(default=0.0, description="share of the run before sampling starts")
    ramp: Share = Field(
        default=0.5, description="share of the run over which the probability grows"
    )
    maximum: Share = Field(default=0.5, description="largest probability of an own token")
    passes: Count = Field(
        default=2, description="parallel passes that build the free-running prefix"
    )
    rollout_rows: Count = Field(default=5, description="rows of each own rollout")
    input_noise: NonNegative = Field(
        default=0.0, description="std in bins of noise on previous x tokens"
    )
    hidden: Share = Field(
        default=0.0,
        description="share of the lanes whose steps read as if no point had been written yet, so "
        "that each has to find its lane in the image",
    )

    @model_validator(mode="after")
    def _check(self) -> ExposureConfig:
        if self.mode == "teacher_forcing":
            self.dead(
                "exposure.mode is teacher_forcing",
                "start",
                "ramp",
                "maximum",
                "passes",
                "rollout_rows",
            )
        elif self.mode == "scheduled_sampling":
            self.dead("exposure.mode is scheduled_sampling", "rollout_rows")
        else:
            self.dead("exposure.mode is rollout", "ramp", "passes")
        return self


class BatchConfig(Part):
    """What one optimiser step sees."""

    images: Count = Field(default=1, description="images per forward pass")
    lanes: Count | None = Field(
        default=None, description="fixed number of lanes per pass; null: all"
    )
    accumulate: Count = Field(default=1, description="passes per optimiser step")
    shift: NonNegative = Field(
        default=0.0,
        description="std in P5 cells (32 px) of sideways shifts of an image's features and lanes, "
        "drawn anew whenever it is shown",
    )
    shear: NonNegative = Field(
        default=0.0,
        description="std in P5 cells (32 px) of how far an image's bottom leans sideways, its top "
        "staying, as from another place of the road; of features and lanes, drawn anew as well",
    )


class DecodeConfig(Part):
    """Free-running decoding."""

    ends: Literal["x", "x_or_y"] = Field(default="x", description="which head may end a lane")
    choice: Literal["token", "point", "median"] = Field(
        default="token",
        description="token: the likeliest id; point: no point if that is likelier than all points "
        "together, else the likeliest point; median: the same, but the points' median",
    )
    hallucination_removal: bool = Field(
        default=False,
        description="lanes of more than 10 points end at the first |dx| > 2 P85(|dx|) (the paper); "
        "read apart, as *_processed",
    )
    smooth: Count = Field(
        default=1,
        description="odd window in rows of a centred mean over decoded px, 1: off; read apart, as "
        "*_processed",
    )

    nms: Positive | None = Field(
        default=None,
        description="px; of lanes that lie nearer than this to each other (mean |dx| on common "
        "rows) the longest stays, null: all stay; read apart, as *_processed",
    )

    @model_validator(mode="after")
    def _check(self) -> DecodeConfig:
        if self.smooth % 2 == 0:
            raise ValueError(f"smooth={self.smooth} must be odd: the window is centred on a row")
        return self


class EvaluationConfig(Part):
    """When and on how much the readings are taken."""

    every: Count = Field(
        default=100, description="steps between evaluations (the last step always has one)"
    )
    val_every: Count | None = Field(
        default=None,
        description="steps between evaluations that read the validation images too (that of the "
        "last step always does); null: each does",
    )
    train_images: Count = Field(default=16, description="training images evaluated, at most")

    def reads_val(self, step: int, steps: int) -> bool:
        """Whether the evaluation at a step reads the validation images too.

        The first at or after each multiple of `val_every` does, and that of the last step.
        """
        if self.val_every is None or step == steps:
            return True
        return step // self.val_every > (step - self.every) // self.val_every


class RuntimeConfig(Part):
    """Where and how a job runs: nothing here changes its numbers beyond float rounding.

    But for dropout, whose masks a GPU draws otherwise than a CPU.
    """

    device: str = outside_identity(
        "cpu", description="cpu, cuda or cuda:N", pattern=r"^(cpu|cuda(:\d+)?)$"
    )
    threads: Count = outside_identity(1, description="torch threads")
    log_every: Count = outside_identity(10, description="steps between logged training metrics")
    checkpoint_every: Count = outside_identity(100, description="steps between checkpoints")
    pictures: bool = outside_identity(True, description="draw overlays and attention maps")
    pictures_during: Annotated[int, Field(ge=0)] = outside_identity(
        4,
        description="how often they are drawn before the last step, too: untrained, then at "
        "evaluations spread evenly; 0: never",
    )


class TrainConfig(Part):
    """One job, whole. Build it with `model.presets.build`."""

    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="initialisation, data order, noise"
    )
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    visual: VisualConfig = VisualConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    exposure: ExposureConfig = ExposureConfig()
    batch: BatchConfig = BatchConfig()
    decode: DecodeConfig = DecodeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = outside_identity(RuntimeConfig())

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        visual = self.visual
        one_memory = visual.levels == "p5" or visual.fold or visual.select != "none"
        if self.model.memory == "per_level" and one_memory:
            raise ValueError(
                "model.memory=per_level needs several levels, visual.fold=false and "
                "visual.select=none"
            )
        if self.model.memory == "per_level" and self.model.n_layers < (
            levels := {"p4p5": 2, "full": 3}[visual.levels]
        ):
            raise ValueError(
                f"model.memory=per_level with visual.levels={visual.levels} needs a block a level: "
                f"model.n_layers={self.model.n_layers}, allowed: {levels} or more"
            )
        if self.data.above_crop == "clip" and (self.batch.shift or self.batch.shear):
            raise ValueError(
                "data.above_crop=clip with batch.shift or batch.shear: lanes that are moved are "
                "cut; allowed: data.above_crop=cut, or neither of them"
            )
        if self.loss.lane_map and visual.stride > 1:
            raise ValueError(
                f"loss.lane_map needs every cell: visual.stride={visual.stride}, allowed: 1"
            )
        if self.decode.choice == "median" and self.tokenizer.mode != "absolute":
            raise ValueError(
                f"decode.choice=median with tokenizer.mode={self.tokenizer.mode}: columns and "
                "steps have no common median; allowed: token, point"
            )
        sinusoids = visual.position in ("sinusoidal", "aligned", "weak") or visual.select == "pool"
        if sinusoids and self.model.d_model % 4:
            raise ValueError(
                f"model.d_model={self.model.d_model} must be a multiple of 4 for sinusoids"
            )
        if self.decode.ends == "x_or_y":
            loss = self.loss
            if loss.ends == "ignored":
                raise ValueError(
                    "decode.ends=x_or_y with loss.ends=ignored: the y head is never shown an end; "
                    "allowed: decode.ends=x, or loss.ends=learned"
                )
            if loss.y_weight == 0 and (loss.y_schedule == "fixed" or loss.y_first == 0):
                raise ValueError(
                    "decode.ends=x_or_y with loss.y_weight=0: the y head is never trained; "
                    "allowed: decode.ends=x, or loss.y_weight above 0"
                )
        return self


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings, flat: {"optim.lr": 0.0003, ...}."""
    return {path: value for path, value, _, _ in flatten(config)}


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that change numbers and differ from their neutral value, flat, seed apart."""
    return {
        path: value
        for path, value, neutral, counts in flatten(config)
        if counts and value != neutral and path != "seed"
    }
