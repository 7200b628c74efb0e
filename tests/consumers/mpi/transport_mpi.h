/* SPDX-License-Identifier: Apache-2.0 */
/* megascale_infer's transport over MPI: a yardstick, in tests only. */
#ifndef TESTS_TRANSPORT_MPI_H
#define TESTS_TRANSPORT_MPI_H

#include "megascale_infer/transport.h"

extern const struct transport_ops transport_mpi;

#endif
