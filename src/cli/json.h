/* JSON on stdout: only what results need, so that every command spells strings and numbers the same way. */
#ifndef AIM_CLI_JSON_H
#define AIM_CLI_JSON_H

#include <stdint.h>

/* A quoted string; bytes that are not UTF-8 become U+FFFD. NULL is null. */
void json_string(const char *text);

/* The shortest decimal that reads back as the same double; null when not finite. */
void json_number(double value);

/* [1, 2, 3] */
void json_integers(const int64_t *values, int64_t count);

/* The same spelling of a double for other uses; out holds at least 32 characters. */
void json_format_number(double value, char *out);

#endif
