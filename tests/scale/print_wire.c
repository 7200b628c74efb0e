/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What docs/wire.md says in numbers, from the headers: a line each, by blanks. `head` lines are
 * field, offset and size of the slot head; others are name and value.
 */
#include <stdio.h>

#include "core/record.h"
#include "wire/control_wire.h"
#include "wire/plan_wire.h"
#include "wire/slot_wire.h"
#include "wire/store_wire.h"

#define FIELD(name)                                                                                \
	printf("head %s %zu %zu\n", #name, offsetof(struct m2n__slot_head, name),                  \
		sizeof(((struct m2n__slot_head *)0)->name))
#define STORE(name) printf("store %s %d\n", #name, M2N__STORE_##name)
#define FRAME(name) printf("control %s %d\n", #name, M2N__FRAME_##name)
#define NUMBER(name) printf("number %s %lu\n", #name, (unsigned long)M2N__##name)

int main(void)
{
	FIELD(signal);
	FIELD(body);
	FIELD(bytes);
	FIELD(place);
	FIELD(n_rows);
	FIELD(n_sent);
	FIELD(map_digest);
	FIELD(sink);
	FIELD(n_body_puts);
	FIELD(flags);
	FIELD(seal);
	STORE(HELLO), STORE(CHALLENGE), STORE(PROOF), STORE(WELCOME), STORE(REFUSED), STORE(PUT);
	STORE(GET), STORE(TRY), STORE(DONE), STORE(VALUE), STORE(MISSING), STORE(FAILED);
	STORE(ENTRY);
	FRAME(HELLO), FRAME(CHALLENGE), FRAME(PROOF), FRAME(REJECT), FRAME(LINK), FRAME(UNLINK);
	FRAME(BYE), FRAME(START), FRAME(GREET), FRAME(UNLINKED), FRAME(NOTICE);
	NUMBER(STORE_MAGIC), NUMBER(FRAME_MAGIC), NUMBER(PLAN_MAGIC);
	NUMBER(WIRE_VERSION), NUMBER(PLAN_VERSION), NUMBER(RECORD_BYTES_MAX);
	NUMBER(ADDRESS_BYTES), NUMBER(KEY_BYTES), NUMBER(GREETING_BYTES);
	return 0;
}
