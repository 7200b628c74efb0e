/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON values. Arrays and objects are one thing, a list of items, of which an object's have names:
 * looking a member up walks the list, which is short in all that the tools print.
 */
#include "jansson.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum kind {
	KIND_NULL,
	KIND_BOOLEAN,
	KIND_INTEGER,
	KIND_REAL,
	KIND_STRING,
	KIND_ARRAY,
	KIND_OBJECT,
};

struct item {
	char *name; /* NULL in an array */
	json_t *value;
};

struct json_t {
	enum kind kind;
	json_int_t integer; /* and booleans */
	double real;
	char *text;
	struct item *items;
	size_t n_items, room;
};

static json_t *make(enum kind kind)
{
	json_t *value = calloc(1, sizeof(*value));

	if (value != NULL)
		value->kind = kind;
	return value;
}

json_t *json_null(void)
{
	return make(KIND_NULL);
}

json_t *json_array(void)
{
	return make(KIND_ARRAY);
}

json_t *json_object(void)
{
	return make(KIND_OBJECT);
}

json_t *json_boolean(int truth)
{
	json_t *value = make(KIND_BOOLEAN);

	if (value != NULL)
		value->integer = truth != 0;
	return value;
}

json_t *json_integer(json_int_t number)
{
	json_t *value = make(KIND_INTEGER);

	if (value != NULL)
		value->integer = number;
	return value;
}

json_t *json_real(double number)
{
	json_t *value = isfinite(number) ? make(KIND_REAL) : NULL;

	if (value != NULL)
		value->real = number;
	return value;
}

/* Bytes of the character at `at`; 0: it is none (cut off, too long a form, no code point). */
static size_t character_bytes(const unsigned char *at)
{
	static const unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t n = at[0] < 0x80 ? 1 : at[0] < 0xc0 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
	unsigned code = n < 2 ? at[0] : at[0] & (0x7fu >> n);

	if (n == 0 || at[0] > 0xf4)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((at[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (at[i] & 0x3f);
	}
	return code < smallest[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : n;
}

json_t *json_string(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;

	for (size_t n; at != NULL && *at != '\0'; at += n) {
		n = character_bytes(at);
		if (n == 0)
			return NULL;
	}
	json_t *value = at != NULL ? make(KIND_STRING) : NULL;
	if (value == NULL)
		return NULL;
	value->text = strdup(text);
	if (value->text == NULL) {
		free(value);
		return NULL;
	}
	return value;
}

static void free_items(json_t *value)
{
	for (size_t i = 0; i < value->n_items; i++) {
		free(value->items[i].name);
		json_decref(value->items[i].value);
	}
	free(value->items);
}

void json_decref(json_t *value)
{
	if (value == NULL)
		return;
	free_items(value);
	free(value->text);
	free(value);
}

/* Takes name and value, also when it fails. */
static int append(json_t *list, char *name, json_t *value)
{
	if (list != NULL && value != NULL && list->n_items == list->room) {
		size_t room = list->room > 0 ? 2 * list->room : 8;
		void *items = realloc(list->items, room * sizeof(*list->items));
		if (items != NULL) {
			list->items = items;
			list->room = room;
		}
	}
	if (list == NULL || value == NULL || list->n_items == list->room) {
		free(name);
		json_decref(value);
		return -1;
	}
	list->items[list->n_items++] = (struct item){name, value};
	return 0;
}

int json_array_append_new(json_t *array, json_t *value)
{
	return append(array, NULL, value);
}

static struct item *find(const json_t *object, const char *name)
{
	if (object == NULL || object->kind != KIND_OBJECT)
		return NULL;
	for (size_t i = 0; i < object->n_items; i++)
		if (strcmp(object->items[i].name, name) == 0)
			return &object->items[i];
	return NULL;
}

int json_object_set_new(json_t *object, const char *name, json_t *value)
{
	struct item *item = find(object, name);

	if (item != NULL && value != NULL) {
		json_decref(item->value);
		item->value = value;
		return 0;
	}
	char *copy = strdup(name);
	if (copy == NULL) {
		json_decref(value);
		return -1;
	}
	return append(object, copy, value);
}

int json_object_update(json_t *object, json_t *from)
{
	int status = object != NULL && from != NULL ? 0 : -1;

	for (size_t i = 0; status == 0 && i < from->n_items; i++) {
		status = json_object_set_new(object, from->items[i].name, from->items[i].value);
		from->items[i].value = NULL;
	}
	return status;
}

json_t *json_object_get(const json_t *object, const char *name)
{
	struct item *item = find(object, name);

	return item != NULL ? item->value : NULL;
}

json_t *json_array_get(const json_t *array, size_t i)
{
	return i < json_array_size(array) ? array->items[i].value : NULL;
}

size_t json_array_size(const json_t *array)
{
	return array != NULL && array->kind == KIND_ARRAY ? array->n_items : 0;
}

const char *json_string_value(const json_t *value)
{
	return value != NULL ? value->text : NULL;
}

int json_is_integer(const json_t *value)
{
	return value != NULL && value->kind == KIND_INTEGER;
}

json_int_t json_integer_value(const json_t *value)
{
	return json_is_integer(value) ? value->integer : 0;
}

int json_is_null(const json_t *value)
{
	return value != NULL && value->kind == KIND_NULL;
}

int json_is_true(const json_t *value)
{
	return value != NULL && value->kind == KIND_BOOLEAN && value->integer != 0;
}

/* The member that `form` is at; NULL when it cannot be made. */
static json_t *pack_value(const char **form, va_list *list)
{
	char kind = *(*form)++;
	const char *text;

	switch (kind) {
	case 's':
		text = va_arg(*list, const char *);
		if (**form != '?')
			return json_string(text);
		(*form)++;
		return text != NULL ? json_string(text) : json_null();
	case 'i':
		return json_integer(va_arg(*list, int));
	case 'I':
		return json_integer(va_arg(*list, json_int_t));
	case 'f':
		return json_real(va_arg(*list, double));
	case 'b':
		return json_boolean(va_arg(*list, int));
	case 'o':
		return va_arg(*list, json_t *);
	default:
		return NULL;
	}
}

json_t *json_pack(const char *form, ...)
{
	json_t *object = json_object();
	int status = 0;
	va_list list;

	va_start(list, form);
	while ((form = strstr(form, "s:")) != NULL) {
		const char *name = va_arg(list, const char *);
		form += 2;
		/* All are taken, also after one could not be made. */
		status |= json_object_set_new(object, name, pack_value(&form, &list));
	}
	va_end(list);
	if (status == 0)
		return object;
	json_decref(object);
	return NULL;
}

static void print_text(const char *text, FILE *file)
{
	static const char names[] = "\"\\\b\f\n\r\t", escapes[] = "\"\\bfnrt";

	fputc('"', file);
	for (; *text != '\0'; text++) {
		const char *name = strchr(names, *text);
		if (name != NULL)
			fprintf(file, "\\%c", escapes[name - names]);
		else if ((unsigned char)*text < 0x20)
			fprintf(file, "\\u%04x", (unsigned)*text);
		else
			fputc(*text, file);
	}
	fputc('"', file);
}

static void print_real(double real, FILE *file)
{
	char text[40];

	snprintf(text, sizeof(text), "%.9g", real);
	fprintf(file, "%s%s", text, strpbrk(text, ".e") != NULL ? "" : ".0");
}

static void print_value(const json_t *value, FILE *file, int indent, int level);

static void print_items(const json_t *value, FILE *file, int indent, int level)
{
	int is_object = value->kind == KIND_OBJECT;

	fputc(is_object ? '{' : '[', file);
	for (size_t i = 0; i < value->n_items; i++) {
		fprintf(file, "%s\n%*s", i > 0 ? "," : "", indent * (level + 1), "");
		if (is_object) {
			print_text(value->items[i].name, file);
			fputs(": ", file);
		}
		print_value(value->items[i].value, file, indent, level + 1);
	}
	if (value->n_items > 0)
		fprintf(file, "\n%*s", indent * level, "");
	fputc(is_object ? '}' : ']', file);
}

static void print_value(const json_t *value, FILE *file, int indent, int level)
{
	switch (value->kind) {
	case KIND_NULL:
		fputs("null", file);
		break;
	case KIND_BOOLEAN:
		fputs(value->integer ? "true" : "false", file);
		break;
	case KIND_INTEGER:
		fprintf(file, "%lld", value->integer);
		break;
	case KIND_REAL:
		print_real(value->real, file);
		break;
	case KIND_STRING:
		print_text(value->text, file);
		break;
	default:
		print_items(value, file, indent, level);
	}
}

int json_dumpf(const json_t *value, FILE *file, int indent)
{
	print_value(value, file, indent, 0);
	return ferror(file) ? -1 : 0;
}
