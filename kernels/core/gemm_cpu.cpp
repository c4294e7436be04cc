#include "kernels/core/context.h"
#include "kernels/core/gemm.h"
