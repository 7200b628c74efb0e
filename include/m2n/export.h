/* SPDX-License-Identifier: Apache-2.0 */
/* What marks a public function: visible in the shared library, everything else is hidden. */
#ifndef M2N_EXPORT_H
#define M2N_EXPORT_H

#if defined(__GNUC__)
#define M2N_API __attribute__((visibility("default")))
#else
#define M2N_API
#endif

#endif
