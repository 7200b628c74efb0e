/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The version of everything that two processes agree on: control frames, slot heads, packed
 * plans, address records. Raised when any of them changes; peers of other versions are refused
 * by name, never guessed at.
 */
#ifndef M2N_WIRE_H
#define M2N_WIRE_H

#define M2N__WIRE_VERSION 1

#endif
