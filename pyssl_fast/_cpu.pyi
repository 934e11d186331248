FLOAT32: int
FLOAT16: int
BFLOAT16: int
PRECISION_FLOAT32: int
PRECISION_BFLOAT16X3: int
PRECISION_BFLOAT16: int
COMPILER: str
HAS_OPENMP: bool

def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def has_bfloat16() -> bool: ...
def nt_xent(
    z: int,
    dtype: int,
    stride: int,
    rows: int,
    dim: int,
    views: int,
    scale: float,
    nll: int,
    shift: int,
    negative_sum: int,
    precision: int,
    threads: int,
) -> None: ...
def nt_xent_backward(
    grad_nll: int,
    z: int,
    dtype: int,
    stride: int,
    shift: int,
    negative_sum: int,
    rows: int,
    dim: int,
    views: int,
    scale: float,
    grad_z: int,
    grad_stride: int,
    precision: int,
    threads: int,
) -> float: ...
