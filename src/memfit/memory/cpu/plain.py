"""Operations that allocate their outputs and nothing else."""

from __future__ import annotations

_OUTPUTS_ONLY = """
_adaptive_avg_pool2d.default _adaptive_avg_pool2d_backward.default _foreach_mul_.Tensor _foreach_norm.Scalar
_fused_adam_.default _fused_sgd_.default _local_scalar_dense.default _prelu_kernel.default
_prelu_kernel_backward.default _to_copy.default _unsafe_view.default _upsample_nearest_exact2d_backward.default
abs.default adaptive_max_pool2d.default adaptive_max_pool2d_backward.default addcdiv_.default addcmul.default
addcmul_.default addmv.default alias.default all.default aminmax.default any.default arange.default arange.start
arange.start_step argmax.default as_strided.default as_strided_.default avg_pool3d.default bernoulli_.float
bitwise_and.Tensor bitwise_not.default cat.default celu.default clamp.default clamp_min.default clone.default
col2im.default constant_pad_nd.default copy_.default cos.default cumprod.default detach.default dot.default
elu.default elu_backward.default embedding.default empty.memory_format empty_like.default eq.Tensor erf.default
exp.default expand.default fill_.Scalar fill_.Tensor flip.default floor.default full.default full_like.default
gather.default gelu.default gelu_backward.default glu.default glu_backward.default hardsigmoid.default
hardsigmoid_backward.default hardswish.default hardswish_.default hardswish_backward.default hardtanh.default
hardtanh_.default hardtanh_backward.default index.Tensor index_add.default index_select.default
isnan.default le.Tensor leaky_relu.default leaky_relu_.default leaky_relu_backward.default lerp.Scalar lerp_.Scalar
lift_fresh.default linalg_vector_norm.default linspace.default logical_and.default logical_and_.default
logical_or_.default masked_fill.Scalar masked_fill_.Scalar max.default max.dim max_pool2d_with_indices.default
maximum.out mish.default mish_backward.default mse_loss_backward.default mv.default neg.default new_empty.default
new_empty_strided.default new_zeros.default nll_loss2d_backward.default nll_loss2d_forward.default
nll_loss_backward.default nll_loss_forward.default normal_.default ones.default ones_like.default permute.default
pixel_shuffle.default pixel_unshuffle.default pow.Tensor_Scalar randint.low randn.default randn_like.default
reciprocal.default reflection_pad2d.default reflection_pad2d_backward.default relu.default relu_.default
replication_pad2d.default replication_pad2d_backward.default round.default rsqrt.default scalar_tensor.default
scatter.src scatter_.value scatter_add.default select.int select_backward.default sgn.default sigmoid.default
sigmoid_backward.default sign.default silu.default silu_.default silu_backward.default sin.default slice.Tensor
slice_backward.default smooth_l1_loss_backward.default softplus.default softplus_backward.default softshrink.default
softshrink_backward.default split.Tensor split_with_sizes.default sqrt.default squeeze.dim stack.default t.default
tanh.default tanh_backward.default threshold_backward.default topk.default transpose.int unbind.int unfold.default
uniform_.default unsqueeze.default upsample_bilinear2d_backward.default upsample_nearest2d_backward.default
view.default where.self xlogy.Tensor zero_.default zeros.default zeros_like.default
"""

PLAIN = frozenset(f"aten.{name}" for name in _OUTPUTS_ONLY.split())
"""Targets measured with torch 2.13.0 on every network and operation of the benchmark: views, copies, element-wise work
without a Python scalar, pooling and losses on the layouts they take, optimizer steps.
"""
