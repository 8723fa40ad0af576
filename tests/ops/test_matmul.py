"""Matrix products by either library: values, gradients, transposed views, and which library is used when."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ssamba.errors import ConfigError
from ssamba.ops import matmul
from ssamba.ops.matmul import Linear, linear, matmul_t


@pytest.fixture(params=["mkl", "onednn"])
def library(request):
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    matmul.use_library(request.param)
    yield request.param
    matmul.use_library(None)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 1, 1), (63, 192, 768), (512, 384, 44), (1025, 65, 63)])
def test_products_agree_with_float64_in_every_layout(library, rows, inner, columns):
    a, weight = normal(rows, inner), normal(columns, inner)
    exact = a.double() @ weight.double().t()
    tolerance = 4 * (a @ weight.t() - exact).abs().max().item() + 1e-6
    wide = torch.full((rows, columns + 4), 7.0)
    matmul_t(a, weight, wide[:, :columns])
    assert (wide[:, :columns] - exact).abs().max() <= tolerance
    assert (wide[:, columns:] == 7).all()
    out = torch.empty(columns, rows)
    matmul_t(weight.t().contiguous().t(), a.t().contiguous().t(), out)
    assert (out - exact.t()).abs().max() <= tolerance


def test_large_results_are_copied_in_pieces(library, monkeypatch):
    monkeypatch.setattr(matmul, "_PIECE_ELEMENTS", 96 * 50)
    a, weight, out = normal(333, 192), normal(96, 192), torch.empty(333, 96)
    matmul_t(a, weight, out)
    torch.testing.assert_close(out, a @ weight.t(), rtol=1e-4, atol=1e-4)


def test_bfloat16_uses_pytorch(library):
    a, weight = normal(300, 192).bfloat16(), normal(96, 192).bfloat16()
    out = torch.empty(300, 96, dtype=torch.bfloat16)
    matmul_t(a, weight, out)
    torch.testing.assert_close(out, F.linear(a, weight))


def test_a_layer_and_its_gradients_equal_pytorchs(library):
    layer = Linear(192, 96)
    usual = torch.nn.Linear(192, 96)
    usual.load_state_dict(layer.state_dict())
    x = normal(2, 80, 192)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = normal(2, 80, 96)
    (layer(ours) * weights).sum().backward()
    (usual(theirs) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for own, other in zip(layer.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-3)
    # Gradients of gradients as well.
    (first,) = torch.autograd.grad((layer(ours) ** 2).sum(), ours, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), ours)
    (first,) = torch.autograd.grad((usual(theirs) ** 2).sum(), theirs, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad((first**2).sum(), theirs)[0], rtol=1e-3, atol=1e-1)


def test_small_autocast_batched_and_exported_products_use_pytorch(library):
    layer, x = Linear(192, 96), normal(400, 192)
    with torch.no_grad():
        assert torch.equal(linear(x[:1], layer.weight), F.linear(x[:1], layer.weight))  # small
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        batched = torch.func.vmap(layer)(x[None])
        torch.testing.assert_close(batched[0], F.linear(x, layer.weight, layer.bias))
    exported = torch.export.export(layer, (x,))
    assert "mkldnn" not in str(exported.graph)


def test_the_environment_variable_chooses_the_library_and_is_checked():
    code = "from ssamba.ops import matmul; print(matmul.library())"
    for name, said in (("mkl", "mkl"), ("onednn", "onednn"), ("blas", "expected mkl or onednn")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"SSAMBA_CPU_PRODUCTS": name, "PATH": ""}, capture_output=True, text=True
        )
        assert said in done.stdout + done.stderr
    with pytest.raises(ConfigError, match="expected mkl or onednn"):
        matmul.use_library("blas")
    matmul.use_library(None)
