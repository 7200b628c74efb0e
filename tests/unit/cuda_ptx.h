/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels that the stand-in of the driver has of its own, as PTX: with them its tests also run
 * on the real driver, which shows that the stand-in behaves like it. One thread does the work.
 */
#ifndef TESTS_UNIT_CUDA_PTX_H
#define TESTS_UNIT_CUDA_PTX_H

#define PTX_BEGIN(name, bytes) \
	".visible .entry " name "(.param .align 8 .b8 args[" bytes "])\n" \
	"{\n" \
	"	.reg .b64 %a, %b, %c, %i;\n" \
	"	.reg .b32 %v, %w, %t;\n" \
	"	.reg .pred %p;\n" \
	"	mov.u32 %t, %tid.x;\n" \
	"	setp.ne.u32 %p, %t, 0;\n" \
	"	@%p ret;\n"

static const char double_kernels_ptx[] =
	".version 7.0\n"
	".target sm_80\n"
	".address_size 64\n"
	PTX_BEGIN("m2n_double_fill", "24")
	"	ld.param.u64 %a, [args];\n"
	"	ld.param.u64 %c, [args + 8];\n"
	"	ld.param.u32 %v, [args + 16];\n"
	"	mov.u64 %i, 0;\n"
	"NEXT:	setp.ge.u64 %p, %i, %c;\n"
	"	@%p ret;\n"
	"	st.u32 [%a], %v;\n"
	"	add.u32 %v, %v, 1;\n"
	"	add.u64 %a, %a, 4;\n"
	"	add.u64 %i, %i, 1;\n"
	"	bra NEXT;\n"
	"}\n"
	PTX_BEGIN("m2n_double_add", "24")
	"	ld.param.u64 %a, [args];\n"
	"	ld.param.u64 %b, [args + 8];\n"
	"	ld.param.u64 %c, [args + 16];\n"
	"	mov.u64 %i, 0;\n"
	"NEXT:	setp.ge.u64 %p, %i, %c;\n"
	"	@%p ret;\n"
	"	ld.u32 %v, [%a];\n"
	"	ld.u32 %w, [%b];\n"
	"	add.u32 %v, %v, %w;\n"
	"	st.u32 [%a], %v;\n"
	"	add.u64 %a, %a, 4;\n"
	"	add.u64 %b, %b, 4;\n"
	"	add.u64 %i, %i, 1;\n"
	"	bra NEXT;\n"
	"}\n"
	PTX_BEGIN("m2n_double_await", "16")
	"	ld.param.u64 %a, [args];\n"
	"	ld.param.u64 %b, [args + 8];\n"
	"NEXT:	ld.acquire.sys.u64 %c, [%a];\n"
	"	setp.lo.u64 %p, %c, %b;\n"
	"	@%p bra NEXT;\n"
	"	ret;\n"
	"}\n";

#endif
