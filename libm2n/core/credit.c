/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credits of the public exchange on messaging backends. Messages are released in order, so one
 * number tells all: how many. A transfer of its own for each would double the work of small
 * messages, so a credit is *owed* first and then
 *
 *   - carried by the head of the next message to that peer, or
 *   - paid when half of the slots are owed, when the sender may have none left (all the slots
 *     that it knows of are full), or when any wait of this process finds it (m2n__group_poll()).
 *
 * A carried credit is heard when the message is taken. The peer may have reason to send first, and
 * wait for a slot: so a wait pays what was only carried as well.
 *
 * The sender takes the largest number that it has heard: transfers may overtake each other.
 */
#include "core/link.h"

void m2n__credit_forget(struct m2n_exchange *x, struct m2n__rx *rx)
{
	atomic_store_explicit(&rx->owed, 0, memory_order_relaxed);
	/* A13: what was released before the flag was set is seen, pairs with R13. */
	if (atomic_exchange_explicit(&rx->is_unpaid, 0, memory_order_acq_rel))
		atomic_fetch_sub_explicit(&x->ctx->n_owing, 1, memory_order_relaxed);
}

uint64_t m2n__credit_carry(struct m2n__rx *rx)
{
	atomic_store_explicit(&rx->owed, 0, memory_order_relaxed);
	/* R11: reads of the slots before their release is told, pairs with the sender's A11. */
	return atomic_load_explicit(&rx->n_released, memory_order_acquire);
}

/* Pays what is owed, if nobody else does. */
static void pay(struct m2n_exchange *x, struct m2n__rx *rx)
{
	if (!atomic_load_explicit(&rx->is_unpaid, memory_order_relaxed))
		return;
	m2n__credit_forget(x, rx);
	m2n__rx_credit(x, rx, 0, m2n__credit_carry(rx) - 1);
}

/* Has the sender filled every slot that it was told is free? */
static int is_full(const struct m2n_exchange *x, const struct m2n__rx *rx, unsigned n_owed)
{
	uint64_t told = atomic_load_explicit(&rx->n_released, memory_order_relaxed) - n_owed;
	uint64_t last = told + x->spec.n_slots - 1;
	uint64_t slot = rx->slot + (last - rx->seq); /* less than a turn ahead */

	if (last < rx->seq)
		return 0;
	if (slot >= x->spec.n_slots)
		slot -= x->spec.n_slots;
	return m2n__rx_ready(x, rx, (uint32_t)slot, last);
}

void m2n__credit_owe(struct m2n_exchange *x, struct m2n__rx *rx)
{
	unsigned n_owed;

	atomic_fetch_add_explicit(&rx->n_released, 1, memory_order_release);
	n_owed = atomic_fetch_add_explicit(&rx->owed, 1, memory_order_relaxed) + 1;
	/* R13 */
	if (!atomic_exchange_explicit(&rx->is_unpaid, 1, memory_order_acq_rel))
		atomic_fetch_add_explicit(&x->ctx->n_owing, 1, memory_order_relaxed);
	if (2 * n_owed >= x->spec.n_slots || is_full(x, rx, n_owed))
		pay(x, rx);
}

void m2n__credits_poll(struct m2n_group *group)
{
	for (struct m2n_exchange *x = group->exchanges; x; x = x->next)
		for (size_t i = 0; x->spec.in_order && i < x->n_rx; i++)
			pay(x, &x->rx[i]);
}
