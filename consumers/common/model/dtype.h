/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Number types of weights and of the rows that travel, and casts from and to fp32. Numbers agree
 * with enum m2n_dtype. Casts to a narrower type round to nearest even; NaN stays NaN.
 */
#ifndef MODEL_DTYPE_H
#define MODEL_DTYPE_H

#include <stddef.h>

enum model_dtype {
	MODEL_F32 = 0,
	MODEL_BF16 = 1,
	MODEL_F16 = 2,
	MODEL_OTHER = 3, /* a type that files may hold and models here do not */
};

/* Bytes of one value; 0 for MODEL_OTHER. */
size_t model_dtype_bytes(enum model_dtype dtype);
/* As safetensors writes it: "F32", "BF16", "F16". */
const char *model_dtype_name(enum model_dtype dtype);
/* As config.json writes it: "float32", "bfloat16", "float16". */
const char *model_dtype_torch_name(enum model_dtype dtype);
/* Either form, any case for the former; MODEL_OTHER when it is none of them. */
enum model_dtype model_dtype_parse(const char *name);

void model_to_f32(enum model_dtype dtype, const void *src, size_t n_values, float *dst);
void model_from_f32(enum model_dtype dtype, const float *src, size_t n_values, void *dst);
/* What is left of the values after a trip through the type. */
void model_round(enum model_dtype dtype, float *values, size_t n_values);

#endif
