/*
 * JSON on stdout: only what results need, so that every command spells strings and numbers the same way. The prefix keeps
 * these functions apart from those of the JSON library, which the program is linked with too.
 */
#ifndef AIM_CLI_JSON_H
#define AIM_CLI_JSON_H

#include <stdint.h>

/* A quoted string; bytes that are not UTF-8 become U+FFFD. NULL is null. */
void cli_json_string(const char *text);

/* The shortest decimal that reads back as the same double; null when not finite. */
void cli_json_number(double value);

/* [1, 2, 3] */
void cli_json_integers(const int64_t *values, int64_t count);

/* The same spelling of a double for other uses; out holds at least 32 characters. */
void cli_json_format_number(double value, char *out);

#endif
