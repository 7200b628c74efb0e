/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The paper's three models and five GPUs, and rows of tables. Of the Scaled-MoE the paper gives
 * layers, hidden size, experts and 317 G parameters: an expert size of 8192 and 8 key/value heads
 * of 64 follow from them. The built-in network is 200 Gb/s per GPU, the one it measured M2N on.
 */
#include "specs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "model/error.h"
#include "table.h"

#define GB 1e9

static const struct plan_model models[] = {
	{"Mixtral-8x22B", 56, 6144, 16384, 8, 2, 0, 6144, 1024, 32000},
	{"DBRX", 40, 6144, 10752, 16, 4, 0, 6144, 1024, 100352},
	{"Scaled-MoE", 48, 8192, 8192, 32, 4, 0, 8192, 1024, 32000},
};

static const struct plan_gpu gpus[] = {
	{"L20", 1.00, 48 * GB, 864 * GB, 119.5e12, 25 * GB, 32 * GB, 8},
	{"H800", 5.28, 80 * GB, 3430.4 * GB, 989e12, 25 * GB, 200 * GB, 8},
	{"A800", 2.26, 80 * GB, 2039 * GB, 312e12, 25 * GB, 200 * GB, 8},
	{"H20", 1.85, 96 * GB, 4096 * GB, 148e12, 25 * GB, 450 * GB, 8},
	{"L40S", 1.08, 48 * GB, 864 * GB, 362e12, 25 * GB, 32 * GB, 8},
};

enum { N_MODELS = sizeof(models) / sizeof(models[0]), N_GPUS = sizeof(gpus) / sizeof(gpus[0]) };

static int find_built_in_model(const char *name, struct plan_model *model)
{
	for (size_t i = 0; i < N_MODELS; i++)
		if (!strcmp(models[i].name, name)) {
			*model = models[i];
			return 0;
		}
	return model_fail(-ENOENT, "no model '%s' is built in; there are %s, %s, %s; others: "
		"--models FILE", name, models[0].name, models[1].name, models[2].name);
}

/* What the equations leave no place for. */
static int check_kind(const struct table *table, size_t row, const char *name)
{
	const char *kind = table_text(table, row, "attention");
	double n_layers, n_moe_layers;
	int rc;

	if (kind && strcmp(kind, "GQA") && strcmp(kind, "MHA"))
		return model_fail(-ENOTSUP, "%s:%zu: %s: attention '%s' is not in the performance "
			"model; GQA and MHA are", table->path, table->lines[row], name, kind);
	rc = table_number(table, row, "num_layers", 1, &n_layers);
	if (!rc)
		rc = table_number_or(table, row, "num_moe_layers", 1, n_layers, &n_moe_layers);
	if (!rc && n_layers != n_moe_layers)
		return model_fail(-ENOTSUP, "%s:%zu: %s: %g of %g layers are dense, which is not "
			"in the performance model", table->path, table->lines[row], name,
			n_layers - n_moe_layers, n_layers);
	return rc;
}

static int read_model(const struct table *table, size_t row, struct plan_model *model)
{
	double n_heads, n_kv_heads, head_dim;
	const struct {
		const char *column;
		double *value;
	} columns[] = {
		{"num_layers", &model->n_layers}, {"hidden_size", &model->hidden},
		{"moe_intermediate_size", &model->expert_hidden},
		{"num_experts", &model->n_experts}, {"top_k", &model->top_k},
		{"vocab_size", &model->vocab}, {"num_heads", &n_heads},
		{"num_kv_heads", &n_kv_heads}, {"head_dim", &head_dim},
	};
	int rc = check_kind(table, row, model->name);

	for (size_t i = 0; !rc && i < sizeof(columns) / sizeof(columns[0]); i++)
		rc = table_number(table, row, columns[i].column, 1, columns[i].value);
	if (!rc)
		rc = table_number_or(table, row, "num_shared_experts", 0, 0, &model->n_shared);
	if (rc)
		return rc;
	if (model->top_k > model->n_experts)
		return model_fail(-EINVAL, "%s:%zu: top_k: %g of %g experts", table->path,
			table->lines[row], model->top_k, model->n_experts);
	model->q_width = n_heads * head_dim;
	model->kv_width = n_kv_heads * head_dim;
	return 0;
}

int plan_model_find(const char *path, const char *name, struct plan_model *model)
{
	struct plan_model found = {0};
	struct table table;
	size_t row;
	int rc;

	if (!path)
		return find_built_in_model(name, model);
	rc = table_read(path, &table);
	if (rc)
		return rc;
	snprintf(found.name, sizeof(found.name), "%s", name);
	rc = table_find(&table, "model", name, &row);
	if (!rc)
		rc = read_model(&table, row, &found);
	table_free(&table);
	if (!rc)
		*model = found;
	return rc;
}

static double family_price(const char *name)
{
	size_t n = strcspn(name, "-");

	for (size_t i = 0; i < N_GPUS; i++)
		if (strlen(gpus[i].name) == n && !strncmp(gpus[i].name, name, n))
			return gpus[i].price;
	return 0;
}

static int read_gpu(const struct table *table, size_t row, struct plan_gpu *gpu)
{
	double tflops, mem_gb, mem_gbps, nic, nvlink, pcie, per_node;
	const struct {
		const char *column;
		double min, *value;
	} columns[] = {
		{"bf16_dense_tflops", 1e-6, &tflops}, {"mem_gb", 1e-6, &mem_gb},
		{"hbm_gbps", 1e-6, &mem_gbps}, {"nic_unidir_gbps", 1e-6, &nic},
		{"gpus_per_node", 1, &per_node},
	};
	int rc = 0;

	for (size_t i = 0; !rc && i < sizeof(columns) / sizeof(columns[0]); i++)
		rc = table_number(table, row, columns[i].column, columns[i].min,
			columns[i].value);
	if (!rc)
		rc = table_number_or(table, row, "nvlink_unidir_gbps", 0, 0, &nvlink);
	if (!rc)
		rc = table_number_or(table, row, "pcie_unidir_gbps", 0, 0, &pcie);
	if (!rc)
		rc = table_number_or(table, row, "price", 1e-6, family_price(gpu->name),
			&gpu->price);
	if (rc)
		return rc;
	if (nvlink <= 0 && pcie <= 0)
		return model_fail(-EINVAL, "%s:%zu: neither nvlink_unidir_gbps nor "
			"pcie_unidir_gbps", table->path, table->lines[row]);
	gpu->flops = tflops * 1e12;
	gpu->mem_bytes = mem_gb * GB;
	gpu->mem_bytes_per_s = mem_gbps * GB;
	gpu->nic_bytes_per_s = nic * GB;
	gpu->link_bytes_per_s = (nvlink > 0 ? nvlink : pcie) * GB;
	gpu->gpus_per_node = per_node > 1024 ? 1024 : (int)per_node;
	return 0;
}

static int find_built_in_gpu(const char *name, struct plan_gpu *gpu)
{
	for (size_t i = 0; i < N_GPUS; i++)
		if (!strcmp(gpus[i].name, name)) {
			*gpu = gpus[i];
			return 0;
		}
	return model_fail(-ENOENT, "no GPU '%s' is built in; there are %s, %s, %s, %s, %s; others: "
		"--gpus FILE", name, gpus[0].name, gpus[1].name, gpus[2].name, gpus[3].name,
		gpus[4].name);
}

int plan_gpu_find(const char *path, const char *name, double price, struct plan_gpu *gpu)
{
	struct plan_gpu found = {0};
	struct table table;
	size_t row;
	int rc;

	if (!path) {
		rc = find_built_in_gpu(name, &found);
	} else {
		rc = table_read(path, &table);
		if (rc)
			return rc;
		snprintf(found.name, sizeof(found.name), "%s", name);
		rc = table_find(&table, "gpu", name, &row);
		if (!rc)
			rc = read_gpu(&table, row, &found);
		table_free(&table);
	}
	if (rc)
		return rc;
	if (price > 0)
		found.price = price;
	if (found.price <= 0)
		return model_fail(-EINVAL, "no price of GPU '%s': a column price, or --price %s=X",
			name, name);
	*gpu = found;
	return 0;
}
