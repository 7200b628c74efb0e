/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shapes of models and rates of GPUs, by name: from tables in the form of models.csv and gpus.csv,
 * or those of the paper, which are built in. Prices are relative to an L20, as the paper has them.
 */
#ifndef PLANNING_SPECS_H
#define PLANNING_SPECS_H

#include <stddef.h>

struct plan_model {
	char name[64];
	double n_layers, hidden, expert_hidden, n_experts, top_k, n_shared;
	double q_width, kv_width; /* heads x head size; h and h/g in the paper */
	double vocab;
};

struct plan_gpu {
	char name[64];
	double price, mem_bytes, mem_bytes_per_s, flops;
	double nic_bytes_per_s, link_bytes_per_s; /* one way; the link inside a node */
	int gpus_per_node;
};

enum { PLAN_MAX_GPUS = 32 };

/* path NULL: the built-in ones. An unknown name lists the known. */
int plan_model_find(const char *path, const char *name, struct plan_model *model);
/* price 0: from the table's column `price`, else the paper's for that family ("H20-SXM-96GB" is an
 * H20), else an error. */
int plan_gpu_find(const char *path, const char *name, double price, struct plan_gpu *gpu);

#endif
