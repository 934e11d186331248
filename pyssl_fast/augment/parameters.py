"""What a chain of image operations does to each image of a batch, as plain tensors."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyssl_fast.functional.checks import check_choice, check_count, check_number

Images = Tensor | Sequence[Tensor]
INTERPOLATIONS = ("bilinear", "bicubic")
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)
# field → (dtype, columns, None: one value per sample)
TENSORS: dict[str, tuple[torch.dtype, int | None]] = {
    "box": (torch.int64, 4),
    "horizontal_flip": (torch.bool, None),
    "vertical_flip": (torch.bool, None),
    "turns": (torch.int64, None),
    "angle": (torch.float32, None),
    "translate": (torch.float32, 2),
    "zoom": (torch.float32, None),
    "shear": (torch.float32, 2),
    "order": (torch.int64, 4),
    "jitter": (torch.bool, 4),
    "factors": (torch.float32, 4),
    "grey": (torch.bool, None),
    "sigma": (torch.float32, None),
    "solarize": (torch.bool, None),
    "threshold": (torch.float32, None),
    "invert": (torch.bool, None),
    "bits": (torch.int64, None),
    "erase": (torch.int64, 4),
}
FIELDS = tuple(TENSORS)


@dataclass(frozen=True, repr=False, eq=False)
class Parameters:
    """One row per sample; the operations run in the order of the fields. Pixels are meant on a scale of 0 to 1.

    Every row's numbers must be valid, also where its mask says that the operation is left out.

    Args:
        box: [B, 4] int64: top, left, height, width, in pixels of the input. Cut out first, then resized: an antialiased
            tap never reads beyond the box.
        size: height and width of the result; a number: of squares.
        interpolation: "bilinear" or "bicubic" (a = −0.5 with antialias, −0.75 without, as torch has it).
        antialias: widen the taps where the box is larger than the result.
        horizontal_flip, vertical_flip: [B] bool.
        turns: [B] int64: 0 to 3 quarter turns, counter-clockwise; 1 and 3 of square results alone.
        angle, translate, zoom, shear: [B], [B, 2], [B] and [B, 2] float32: one affine map of the result about its
            centre, bilinear, black outside: degrees counter-clockwise; pixels to the right and down; the factor of
            growth; degrees along x and along y. 0, 0, 1, 0: none. torchvision's `functional.affine`, whose angle is
            clockwise; RandomAffine hands it a fill, by which the outermost pixels fade to black a second time.
        order: [B, 4] int64: a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        jitter: [B, 4] bool: which of the four are applied, by their number.
        factors: [B, 4] float32, by their number: 0 or more, hue −0.5 to 0.5 of a full turn.
        grey: [B] bool.
        sigma: [B] float32: of the Gaussian blur, in pixels of the result. 0: none.
        solarize, threshold: [B] bool, float32: x ≥ threshold becomes 1 − x.
        invert: [B] bool.
        bits: [B] int64: posterize to 1 to 8 bits. 0: none.
        erase: [B, 4] int64: top, left, height, width in the result. Height and width 0: none. The last operation.
        blur_kernel: taps of the blur along each axis, odd, one number for all; reflected at the edges.
        grey_first: grey before the jitter, as MoCo v1 has it, not after.
        mean, std: of the normalisation (x − mean) / std: one number, or one per channel; of four channels, three leave
            the fourth alone. Empty: none.
        erase_value: what is written there, on the scale of the result, after the normalisation.
    """

    box: Tensor
    size: tuple[int, int]
    horizontal_flip: Tensor
    vertical_flip: Tensor
    turns: Tensor
    angle: Tensor
    translate: Tensor
    zoom: Tensor
    shear: Tensor
    order: Tensor
    jitter: Tensor
    factors: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor
    threshold: Tensor
    invert: Tensor
    bits: Tensor
    erase: Tensor
    interpolation: str = "bilinear"
    antialias: bool = True
    blur_kernel: int = 23
    grey_first: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    erase_value: float = 0.0

    def __post_init__(self) -> None:
        mean, std = as_normalisation(self.mean, self.std)
        for name, value in (("size", as_size(self.size)), ("mean", mean), ("std", std)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.box.shape[0]

    def __repr__(self) -> str:
        on = {
            "horizontal_flip": self.horizontal_flip,
            "vertical_flip": self.vertical_flip,
            "turned": self.turns != 0,
            "moved": self.moved,
            "jittered": self.jitter.any(1),
            "grey": self.grey,
            "blurred": self.sigma != 0,
            "solarized": self.solarize,
            "inverted": self.invert,
            "posterized": self.bits != 0,
            "erased": self.erase[:, 2] != 0,
        }
        counts = "".join(f", {name} {int(mask.sum())}" for name, mask in on.items() if bool(mask.any()))
        taps = f"{self.interpolation}{' antialiased' if self.antialias else ''}"
        normal = f", mean {self.mean}, std {self.std}" if self.mean else ""
        return f"Parameters({len(self)} → {self.size[0]} × {self.size[1]} {taps}{counts}{normal})"

    @property
    def moved(self) -> Tensor:
        """[B] bool: whose affine map is one."""
        still = (self.angle == 0) & (self.translate == 0).all(1) & (self.zoom == 1) & (self.shear == 0).all(1)
        return ~still

    def inverse_affine(self) -> Tensor:
        """[B, 2, 3] float64: (x, y, 1) of a pixel of the moved image, from its centre, to where it comes from."""
        turn, (along_x, along_y) = -self.angle.double().deg2rad(), self.shear.double().deg2rad().unbind(1)
        cos, sin = (turn - along_y).cos() / along_y.cos(), (turn - along_y).sin() / along_y.cos()
        linear = torch.stack(
            [turn.cos() - sin * along_x.tan(), turn.sin() + cos * along_x.tan(), -sin, cos], 1
        ).view(-1, 2, 2) / self.zoom.double().view(-1, 1, 1)  # fmt: skip
        return torch.cat([linear, -linear @ self.translate.double()[..., None]], 2)

    def _each(self, change: Any) -> Parameters:
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in FIELDS})

    def index_select(self, index: Tensor) -> Parameters:
        """The samples of that [N] int64 index, in its order."""
        return self._each(lambda x: x.index_select(0, index.to(x.device)))

    def __getitem__(self, index: int | slice | Tensor) -> Parameters:
        """Some of the samples; of an int, a batch of that one."""
        if not isinstance(index, (slice, Tensor)) or (isinstance(index, Tensor) and index.dim() == 0):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"there are {len(self)} samples; got index {index}")
            index = slice(index % len(self), index % len(self) + 1)
        return self._each(lambda x: x[index.to(x.device) if isinstance(index, Tensor) else index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Parameters:
        """The same with the tensors on that device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    @staticmethod
    def cat(parts: Sequence[Parameters]) -> Parameters:
        """One batch of several, as that of a collate function: of one device and size, alike in all but the tensors."""
        if not isinstance(parts, Sequence) or len(parts) == 0:
            raise ValueError(f"parts must be a sequence of Parameters, not empty; got {parts!r}")
        first = parts[0]
        devices = {part.box.device for part in parts}
        if len(devices) > 1:
            raise ValueError(f"parts must be on one device; got {', '.join(sorted(map(str, devices)))}")
        for field in dataclasses.fields(Parameters):
            for part in parts if field.name not in TENSORS else ():
                if getattr(part, field.name) != getattr(first, field.name):
                    raise ValueError(
                        f"parts must have one {field.name}; got {getattr(first, field.name)!r} and"
                        f" {getattr(part, field.name)!r}"
                    )
        tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS}
        return dataclasses.replace(first, **tensors)

    def check(self, images: Images) -> None:
        """Whether they can be applied to these images. The tensors' values are looked at on the CPU alone.

        Raises:
            TypeError, ValueError: what is wrong, what came and what was expected.
        """
        sizes = self.check_form(images)
        if self.box.device.type == "cpu":
            self._check_numbers()
            _check_boxes("box", self.box, np.array(sizes), "image", least=1)

    def check_form(self, images: Images) -> list[tuple[int, int]]:
        """`check` without the tensors' values. Each image's height and width."""
        sizes, channels = image_sizes(images)
        self._check_form()
        if len(sizes) != len(self):
            raise ValueError(f"images must be {len(self)}, one per sample of the parameters; got {len(sizes)}")
        if self.mean and len(self.mean) not in (1, channels) and (channels, len(self.mean)) != (4, 3):
            raise ValueError(
                f"mean must have {'1 number' if channels == 1 else f'1 or {channels} numbers'}, as the images have"
                f" {channels} channel{'s' * (channels > 1)}; got {len(self.mean)}"
            )
        return sizes

    def _check_form(self) -> None:
        for name, (dtype, columns) in TENSORS.items():
            x = getattr(self, name)
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a Tensor; got {type(x).__name__}")
            shape = [len(self)] if columns is None else [len(self), columns]
            if list(x.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}; got {list(x.shape)}")
            if x.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}; got {x.dtype}")
            if x.device != self.box.device:
                raise ValueError(f"{name} must be on box's device {self.box.device}; got {x.device}")
        if len(self) == 0:
            raise ValueError("parameters must not be empty; got 0 samples")
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_flag("antialias", self.antialias)
        check_flag("grey_first", self.grey_first)
        check_count("blur_kernel", self.blur_kernel)
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd; got {self.blur_kernel}")
        check_number("erase_value", self.erase_value, -1e30)

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("turns", 0, 3),
            ("angle", -1e6, 1e6),
            ("translate", -1e6, 1e6),
            ("zoom", 1e-3, 1e3),
            ("shear", -89, 89),
            ("sigma", 0, 1e3),
            ("threshold", 0, 1),
            ("bits", 0, 8),
        ):
            _check_range(name, getattr(self, name), low, high)
        _check_range("factors (brightness, contrast, saturation)", self.factors[:, :HUE], 0, 1e6)
        _check_range("factors (hue)", self.factors[:, HUE], -0.5, 0.5)
        wrong = (np.sort(self.order.numpy(), 1) != np.arange(4)).any(1)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"order must hold 0, 1, 2 and 3 once each; got {self.order[row].tolist()} of sample {row}")
        if self.size[0] != self.size[1] and bool((self.turns % 2 != 0).any()):
            raise ValueError(f"turns of 1 or 3 need a square size; got {self.size[0]} × {self.size[1]}")
        if bool((self.sigma > 0).any()) and self.blur_kernel // 2 >= min(self.size):
            raise ValueError(
                f"blur_kernel must be {2 * min(self.size) - 1} or less, for the result {self.size[0]} × {self.size[1]}"
                f" to be reflected; got {self.blur_kernel}"
            )
        _check_boxes("erase", self.erase, np.array(self.size), "result", least=0)


# NumPy, where a small operation takes a fifth of the time: 100 µs for the checks of 64 samples instead of 200.
def _check_range(name: str, x: Tensor, low: float, high: float) -> None:
    numbers = x.numpy()
    right = (numbers >= low) & (numbers <= high)  # NaN is wrong
    if not right.all():
        row = np.argwhere(~right)[0]
        raise ValueError(f"{name} must be {low:g} to {high:g}; got {numbers[tuple(row)]:g} of sample {row[0]}")


def _check_boxes(name: str, box: Tensor, sizes: Any, where: str, least: int) -> None:
    """sizes: [B, 2], or one [2] of all."""
    start, length = box.numpy()[:, :2], box.numpy()[:, 2:]
    right = (start >= 0) & (length >= least) & (start <= sizes - length)
    if not right.all():
        row = int((~right).any(1).argmax())
        height, width = np.broadcast_to(sizes, right.shape)[row].tolist()
        raise ValueError(
            f"{name} (top, left, height, width) must lie inside the {where} of {height} × {width} pixels;"
            f" got {box[row].tolist()} of sample {row}"
        )


def as_pair(name: str, value: Any) -> tuple[Any, Any]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"{name} must be a pair; got {value!r}")
    return tuple(value)


def as_size(size: Any) -> tuple[int, int]:
    """Height and width, of those or of one number for both."""
    pair = as_pair("size", (size, size) if isinstance(size, Real) else size)
    for side in pair:
        check_count("size", side)
    return int(pair[0]), int(pair[1])


def as_sizes(sizes: Sequence[tuple[int, int]] | Tensor | torch.Size) -> npt.NDArray[np.int64]:
    """[B, 2]: height and width of each image, of those or of the shape of a batch."""
    if isinstance(sizes, torch.Size):
        sizes, _ = image_sizes(torch.empty(sizes, device="meta"))
    size = np.asarray(sizes.cpu() if isinstance(sizes, Tensor) else sizes)
    if size.ndim != 2 or size.shape[1] != 2 or size.dtype.kind not in "iu":
        raise ValueError(f"sizes must hold a height and a width for each image; got {list(size.shape)} of {size.dtype}")
    if len(size) == 0 or (size < 1).any():
        raise ValueError(f"sizes must be 1 pixel or more, of one image or more; got {size.tolist()}")
    return size.astype(np.int64)


def as_normalisation(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples, each of one number or of any sequence of them."""
    numbers = []
    for name, values, least in (("mean", mean, -1e30), ("std", std, 1e-30)):
        try:
            each = tuple(map(float, (values,) if isinstance(values, Real) else values))
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number or hold numbers; got {values!r}") from None
        for number in each:
            check_number(name, number, least)
        numbers.append(each)
    if len(numbers[0]) != len(numbers[1]):
        raise ValueError(f"mean and std must have one length; got {len(numbers[0])} and {len(numbers[1])}")
    return numbers[0], numbers[1]


def check_flag(name: str, value: bool) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def channels_last(x: Tensor) -> bool:
    """Whether the last dimension of an image or a batch holds the channels; the third last is asked first."""
    return x.shape[-3] not in (1, 3, 4) and x.shape[-1] in (1, 3, 4)


def image_sizes(images: Images) -> tuple[list[tuple[int, int]], int]:
    """Each image's height and width, and the number of channels, of a batch or of a list.

    Raises:
        TypeError, ValueError: they are no images.
    """
    shape = "[B, C, H, W] or [B, H, W, C]"
    if isinstance(images, Tensor):
        if images.dim() != 4:
            raise ValueError(f"images must have shape {shape}, or be a list; got {list(images.shape)}")
        each: Sequence[Tensor] = [*images[:1]]  # they are all alike
    elif isinstance(images, (list, tuple)):
        each, shape = images, "[C, H, W] or [H, W, C]"
    else:
        raise TypeError(f"images must be a Tensor {shape} or a list of Tensors; got {type(images).__name__}")
    if len(each) == 0:
        raise ValueError("images must not be empty; got none")
    sizes, first = [], each[0]
    for i, x in enumerate(each):
        if not isinstance(x, Tensor):
            raise TypeError(f"images must be Tensors; got {type(x).__name__} at {i}")
        if x.dim() != 3:
            raise ValueError(f"images must have shape {shape}; got {list(x.shape)} at {i}")
        if x.dtype not in DTYPES:
            raise TypeError(f"images must be uint8 or floating-point; got {x.dtype}")
        if x.is_neg():
            raise ValueError("images must hold their numbers as they are; got a view with the sign to be changed")
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"images must be {first.dtype} on {first.device} as the first; got {x.dtype} on {x.device}"
            )
        last = channels_last(x)
        if x.shape[-3] not in (1, 3, 4) and not last:
            raise ValueError(f"images must have 1, 3 or 4 channels, {shape}; got {list(x.shape)} at {i}")
        channels = x.shape[-1] if last else x.shape[0]
        if 0 in x.shape:
            raise ValueError(f"images must not be empty; got shape {list(x.shape)} at {i}")
        if channels != (first.shape[-1] if channels_last(first) else first.shape[0]):
            raise ValueError(f"images must all have one number of channels; got {channels} at {i}")
        sizes.append((x.shape[0], x.shape[1]) if last else (x.shape[1], x.shape[2]))
    return sizes * len(images) if isinstance(images, Tensor) else sizes, channels


def plain(
    sizes: Sequence[tuple[int, int]] | Tensor | torch.Size, size: int | tuple[int, int], **changes: Any
) -> Parameters:
    """Parameters, on the CPU, that resize whole images and do nothing more, except for what `changes` names.

    Args:
        sizes: height and width of each image, or the shape [B, C, H, W] or [B, H, W, C] of a batch.
        size: of the result, one number for both sides.
        changes: fields of Parameters.
    """
    extent = as_sizes(sizes)
    n = len(extent)

    def zeros(*columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(n, *columns, dtype=dtype, device="cpu")

    no, zero, count = zeros(dtype=torch.bool), zeros(), zeros(dtype=torch.int64)
    fields: dict[str, Any] = {
        "box": torch.cat([zeros(2, dtype=torch.int64), torch.from_numpy(extent)], 1),
        "size": size,
        "horizontal_flip": no,
        "vertical_flip": no,
        "turns": count,
        "angle": zero,
        "translate": zeros(2),
        "zoom": zero + 1,
        "shear": zeros(2),
        "order": torch.arange(4, device="cpu").repeat(n, 1),
        "jitter": zeros(4, dtype=torch.bool),
        "factors": torch.tensor([1, 1, 1, 0], dtype=torch.float32, device="cpu").repeat(n, 1),
        "grey": no,
        "sigma": zero,
        "solarize": no,
        "threshold": zero + 0.5,
        "invert": no,
        "bits": count,
        "erase": zeros(4, dtype=torch.int64),
    }
    return Parameters(**{**fields, **changes})
