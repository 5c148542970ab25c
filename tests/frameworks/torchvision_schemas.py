"""Lets torchvision's Python code import beside a CPU build of PyTorch: declares the operators whose compiled part such
an environment lacks, because its code registers shapes for them. No model here calls one."""

import torch

BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
GRAD = "Tensor grad, Tensor rois, {}float spatial_scale, SymInt pooled_height, SymInt pooled_width, {}" + SIZES
DEFORM = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({GRAD.format('', '')}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({BOXES}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({GRAD.format('Tensor argmax, ', '')}) -> Tensor",
    f"ps_roi_align({BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({GRAD.format('Tensor channel_mapping, ', 'int sampling_ratio, ')}) -> Tensor",
    f"ps_roi_pool({BOXES}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({GRAD.format('Tensor channel_mapping, ', '')}) -> Tensor",
    f"deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, {DEFORM}) -> Tensor",
    "_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    f"{DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
library = torch.library.Library("torchvision", "DEF")
for schema in SCHEMAS:
    library.define(schema)
