/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON values, put together, looked at and printed; nothing is parsed. Names and meanings are those
 * of Jansson, as far as they go, so that its manual serves. Stands in for Jansson where it is not
 * installed and cannot be (a lent GPU machine); elsewhere Jansson itself is used.
 *
 * A function that needs memory returns NULL (or -1) when there is none, and takes NULL as a value
 * that could not be made: an error passes through to whoever looks at last. An object holds a
 * value only once; json_decref() frees a value with all that is in it.
 */
#ifndef PERF_JANSSON_H
#define PERF_JANSSON_H

#include <stdio.h>

typedef long long json_int_t;
struct json_t;
typedef struct json_t json_t;

json_t *json_null(void);
json_t *json_boolean(int value);
json_t *json_integer(json_int_t value);
json_t *json_real(double value);       /* NULL when it is not finite */
json_t *json_string(const char *text); /* copied; NULL when it is no UTF-8 */
json_t *json_array(void);
json_t *json_object(void);
/*
 * An object by its members, "{s:s, s:i}": a name, then s (text), s? (or NULL for null), i (int),
 * I (json_int_t), f (double), b (int) or o (json_t *, taken).
 */
json_t *json_pack(const char *form, ...);
void json_decref(json_t *value); /* NULL is allowed */

/* Both take the value, also when they fail. A member that is there already is replaced. */
int json_object_set_new(json_t *object, const char *name, json_t *value);
int json_array_append_new(json_t *array, json_t *value);
/* Moves all members of `from`, which is left empty. */
int json_object_update(json_t *object, json_t *from);

/* NULL, or 0, when the value is not of the kind, or there is no such member; borrowed. */
json_t *json_object_get(const json_t *object, const char *name);
json_t *json_array_get(const json_t *array, size_t i);
size_t json_array_size(const json_t *array);
const char *json_string_value(const json_t *value);
json_int_t json_integer_value(const json_t *value);
int json_is_integer(const json_t *value);
int json_is_null(const json_t *value);
int json_is_true(const json_t *value);
#define json_array_foreach(array, i, value) \
	for ((i) = 0; (i) < json_array_size(array) && ((value) = json_array_get(array, i)); (i)++)

/* Prints with `indent` blanks a level. 0, or -1 when the file could not be written. */
int json_dumpf(const json_t *value, FILE *file, int indent);

#endif
