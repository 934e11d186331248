# A list of tensors: pointers and dtypes; empty lists where there is none.
Tensors = tuple[list[int], list[int]]
# Value, pointer on the device (0: the value holds), whether that points at a double.
Scalar = tuple[float, int, bool]
# Device and CUDA's handle.
Stream = tuple[int, int]

FLOAT32: int
FLOAT16: int
BFLOAT16: int
CHUNK: int  # elements that one block does
RECORD_BYTES: int  # of workspace, for an entry
PARTIAL_DOUBLES: int  # of workspace, for a chunk of `lars`; `square_sum` takes one
COMPILER: str
TARGETS: list[str]

def ema(
    teacher: Tensors,
    student: Tensors,
    shadow: Tensors,
    sizes: list[int],
    averaged: int,
    momentum: Scalar,
    stream: Stream,
) -> None: ...
def square_sum(tensors: Tensors, sizes: list[int], partials: int, result: int, stream: Stream) -> None: ...
def adamw(
    parameters: Tensors,
    gradients: Tensors,
    exp_avg: Tensors,
    exp_avg_sq: Tensors,
    max_exp_avg_sq: Tensors,
    teacher: Tensors,
    shadow: Tensors,
    steps: list[int],
    sizes: list[int],
    lr: Scalar,
    ema_momentum: Scalar,
    factor: Scalar,
    found_inf: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    records: int,
    stream: Stream,
) -> None: ...
def lars(
    parameters: Tensors,
    gradients: Tensors,
    momentum_buffers: Tensors,
    teacher: Tensors,
    shadow: Tensors,
    sizes: list[int],
    adapted: list[bool],
    fresh: list[bool],
    lr: Scalar,
    ema_momentum: Scalar,
    factor: Scalar,
    found_inf: Scalar,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    trust_coefficient: float,
    eps: float,
    trust_clip: bool,
    joint: bool,
    records: int,
    partials: int,
    stream: Stream,
) -> None: ...
