/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs that a row does not depend on its company: model_product() beside one cblas_sgemm()
 * over the same rows, and cblas_sgemv() for one. Best of several runs, weights larger and smaller
 * than the caches; thousand million multiply-adds a second, counted twice as usual.
 *
 *     bench_product [n_out n_in]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cblas.h>

#include "model/product.h"

#define MAX_ROWS 256

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time); /* the machine may be busy */
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

struct bench {
	struct model_work *work;
	struct model_matrix f32, bf16;
	float *x, *y;
};

static void call(struct bench *b, int which, size_t n_rows)
{
	blasint outs = (blasint)b->f32.n_out, ins = (blasint)b->f32.n_in;

	if (which == 0 && n_rows == 1)
		cblas_sgemv(CblasRowMajor, CblasNoTrans, outs, ins, 1.0f, b->f32.data, ins, b->x, 1,
			0.0f, b->y, 1);
	else if (which == 0)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)n_rows, outs, ins,
			1.0f, b->x, ins, b->f32.data, ins, 0.0f, b->y, outs);
	else
		model_product(b->work, which == 1 ? &b->f32 : &b->bf16, b->x, n_rows,
			b->f32.n_in, b->y, b->f32.n_out);
}

static double rate(struct bench *b, int which, size_t n_rows)
{
	double best = 1e30, flops = 2.0 * (double)(b->f32.n_out * b->f32.n_in * n_rows);
	int repeats = (int)(2e8 / flops) + 1;

	call(b, which, n_rows);
	for (int run = 0; run < 9; run++) {
		double start = now();

		for (int i = 0; i < repeats; i++)
			call(b, which, n_rows);
		start = (now() - start) / repeats;
		best = start < best ? start : best;
	}
	return flops / best * 1e-9;
}

static int bench(size_t n_out, size_t n_in)
{
	size_t n = n_out * n_in;
	float *weights = malloc(n * sizeof(float));
	void *halves = malloc(n * 2);
	struct bench b = {model_work_open(n_in), {weights, MODEL_F32, n_out, n_in},
		{halves, MODEL_BF16, n_out, n_in}, calloc(MAX_ROWS * n_in, sizeof(float)),
		calloc(MAX_ROWS * n_out, sizeof(float))};

	if (!b.work || !weights || !halves || !b.x || !b.y)
		return 1;
	for (size_t i = 0; i < n; i++)
		weights[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
	model_from_f32(MODEL_BF16, weights, n, halves);
	printf("%zu x %zu, tiles %u\n%5s %10s %10s %10s\n", n_out, n_in,
		model_product_tiles(b.work, 64 < n_out ? 64 : n_out, 256 < n_in ? 256 : n_in),
		"rows", "sgemm", "here f32", "here bf16");
	for (size_t rows = 1; rows <= MAX_ROWS; rows = rows < 4 ? rows + 1 : rows * 2)
		printf("%5zu %10.1f %10.1f %10.1f\n", rows, rate(&b, 0, rows), rate(&b, 1, rows),
			rate(&b, 2, rows));
	model_work_close(b.work);
	free(weights);
	free(halves);
	free(b.x);
	free(b.y);
	return 0;
}

int main(int argc, char **argv)
{
	static const size_t shapes[][2] = {{256, 128}, {1024, 512}, {4096, 1024}, {7168, 4096}};
	int rc = 0;

	if (argc == 3)
		return bench(strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10));
	puts(model_product_engine());
	for (size_t i = 0; !rc && i < sizeof(shapes) / sizeof(shapes[0]); i++)
		rc = bench(shapes[i][0], shapes[i][1]);
	return rc;
}
