"""Which operators an ONNX model may use, by domain, and why the rest may not.

Left out on purpose: ``Loop`` and the generators of com.microsoft (run without end), ``Random*``, ``Bernoulli`` and
``Multinomial`` (state between users, and no known answer), sequences, optionals and maps (no tensor at the port),
``ImageDecoder``, string parsing and regular expressions (parsers in C++ fed with users' bytes), ``EPContext`` and its
like (load further code), training, and everything of domains not named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ONNX: Final = ""
ML: Final = "ai.onnx.ml"
MICROSOFT: Final = "com.microsoft"
NCHWC: Final = "com.microsoft.nchwc"

OPSETS: Final[Mapping[str, tuple[int, int]]] = {ONNX: (7, 26), ML: (1, 5), MICROSOFT: (1, 1), NCHWC: (1, 1)}
"""Lowest and highest operator set version. ONNX Runtime 1.31 marks 27 as not final."""

SUBGRAPHS: Final[Mapping[str, tuple[str, ...]]] = {
    "If": ("then_branch", "else_branch"),
    "Scan": ("body",),  # runs once per slice of its input: as bounded as the input
}
"""Operators that hold graphs, and in which attributes."""

_FLAGS: Final = (
    "keepdims allowzero exclusive reverse ceil_mode count_include_pad storage_order transA transB channels_last"
)
_SIZES: Final = "strides dilations kernel_shape blocksize block_size size group num_groups num_heads hidden_size"
ATTRIBUTE_BOUNDS: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(_FLAGS.split(), (0, 1)),
    **dict.fromkeys(_SIZES.split(), (1, 1 << 20)),
    **dict.fromkeys(("axis", "axes"), (-8, 8)),
    **dict.fromkeys(("perm", "batch_dims"), (0, 8)),
    "pads": (-(1 << 20), 1 << 20),
    "stash_type": (1, 16),
}
"""Lowest and highest value of whole-number attributes, by name, whatever the operator. Shape inference and kernels of
ONNX Runtime index by some unchecked (1.31: GatherND's ``batch_dims``, LayerNormalization's ``stash_type``, SIGSEGV)."""
FLOAT_TYPES: Final = frozenset({1, 10, 11, 16})  # what stash_type may be

VARIADIC: Final = frozenset({"Min", "Max", "Mean", "Sum", "Concat", "Einsum", "FeatureVectorizer", "QLinearConcat"})
"""Operators that take any number of inputs, and read each, a left out one too (1.31, SIGSEGV)."""

SCALAR_INPUTS: Final = frozenset(
    {"OneHot", "Range", "TopK", "CumSum", "Trilu", "NonMaxSuppression", "Clip", "DFT", "STFT"}
)
"""Operators whose shape inference takes the first value of a constant input, an empty one too (1.31, SIGABRT)."""

_ONNX_OPERATORS: Final = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BitShift
BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress
Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT DepthToSpace DequantizeLinear Det Div
Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND
Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool
Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearConv
QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
RotaryEmbedding Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unique
Unsqueeze Upsample Where Xor
"""

_ML_OPERATORS: Final = """
ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer
OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsembleClassifier TreeEnsembleRegressor
"""

# What ONNX Runtime's own optimiser fuses into on a CPU. Not the quantised ones: some of their kernels take the number
# and size of scales on trust (1.31: QLinearSigmoid SIGABRT, MatMulIntegerToFloat SIGSEGV). Not attention (SIGSEGV on
# odd shapes of its inputs). Quantised models in standard operators (QuantizeLinear and DequantizeLinear) are accepted,
# and fused when they are loaded.
_MICROSOFT_OPERATORS: Final = """
BiasGelu BiasSoftmax ConvTransposeWithDynamicPads DequantizeLinear EmbedLayerNormalization FastGelu FusedConv
FusedGemm FusedMatMul FusedMatMulActivation Gelu NhwcMaxPool QuantizeLinear QuickGelu RotaryEmbedding
SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul
"""

# The layout that suits the vector unit; written by the optimiser only, checked more closely in onnx_graph.py.
_NCHWC_OPERATORS: Final = "Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool ReorderInput ReorderOutput Upsample"

OPERATORS: Final[Mapping[str, frozenset[str]]] = {
    ONNX: frozenset(_ONNX_OPERATORS.split()),
    ML: frozenset(_ML_OPERATORS.split()),
    MICROSOFT: frozenset(_MICROSOFT_OPERATORS.split()),
    NCHWC: frozenset(_NCHWC_OPERATORS.split()),
}
