"""ReSSL (Zheng et al. 2021) on the core: a contrastive loss of one's own in two operator calls.

The student's similarities to a queue of keys are to be distributed as the teacher's are. With t = ⟨·, key⟩/τ,

    loss_i = −Σ_j softmax(t_teacher)_ij · log softmax(t_student)_ij
           = lse(t_student)_i − Σ_j softmax(t_teacher)_ij · t_student_ij

The last sum is ⟨student_i, teacher's mean key⟩/τ, where the mean key Σ_j softmax(t_teacher)_ij · key_j is what
`bank_contrast` forms anyway. So neither of the two [N, K] matrices is ever held.

Run it: `python examples/ressl.py` compares with the formula written out, in value, gradient and time.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from pyssl_fast import backend
from pyssl_fast.modules import KeyQueue
from pyssl_fast.ops.similarity import NEGATIVES, ROWS


def ressl(
    student: Tensor, teacher: Tensor, keys: Tensor, student_temperature: float = 0.1, teacher_temperature: float = 0.04
) -> Tensor:
    """Mean relational loss of [N, D] student and teacher embeddings over [K, D] keys of length 1 -> []."""
    student = F.normalize(student, dim=1)
    teacher = F.normalize(teacher.detach(), dim=1)
    chosen = backend.choose("similarity", student)

    def against_keys(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """[N] log-sum-exp over the keys, differentiable in x, and [N, D] the softmax's mean key."""
        scale = torch.full((), 1 / temperature, device=x.device)
        lse, mean_key, _ = torch.ops.pyssl_fast.bank_contrast(
            x, keys, scale, None, None, None, [ROWS | NEGATIVES], [1.0], False, chosen
        )
        return lse[0], mean_key[0]

    _, wanted = against_keys(teacher, teacher_temperature)
    lse, _ = against_keys(student, student_temperature)
    return (lse - (student * wanted).sum(1, dtype=torch.float64) / student_temperature).mean().float()


def written_out(student: Tensor, teacher: Tensor, keys: Tensor) -> Tensor:
    """The same as PyTorch users write it: four [N, K] matrices and their gradients."""
    wanted = (F.normalize(teacher.detach(), dim=1) @ keys.T / 0.04).softmax(1)
    return -(wanted * (F.normalize(student, dim=1) @ keys.T / 0.1).log_softmax(1)).sum(1).mean()


def main() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(16384, 128)
    queue.update(torch.randn(16384, 128))
    student, teacher = torch.randn(256, 128, requires_grad=True), torch.randn(256, 128)
    for function in (ressl, written_out):
        student.grad = None
        function(student, teacher, queue.keys).backward()  # warm up
        student.grad = None
        start = time.perf_counter()
        loss = function(student, teacher, queue.keys)
        loss.backward()
        milliseconds = (time.perf_counter() - start) * 1e3
        assert student.grad is not None
        print(f"{function.__name__:12s} loss {loss:.6f}  |gradient| {student.grad.norm():.6f}  {milliseconds:.1f} ms")


if __name__ == "__main__":
    main()
