#include "cli/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Length of the UTF-8 sequence at s, 0 when it is not one (overlong forms and surrogates included). */
static int utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80) return 1;
    int length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4) return 0;
    for (int i = 1; i < length; i++)
        if ((s[i] & 0xC0) != 0x80) return 0; /* also ends at the terminator */
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF0 && s[1] < 0x90) ||
        (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return length;
}

void cli_json_string(const char *text)
{
    if (!text) {
        fputs("null", stdout);
        return;
    }
    putchar('"');
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        int length = utf8_length(s);
        if (length == 0)
            fputs("\\ufffd", stdout);
        else if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if (*s < 0x20 || *s == 0x7f)
            printf("\\u%04x", *s);
        else
            fwrite(s, 1, (size_t)length, stdout);
        s += length ? length : 1;
    }
    putchar('"');
}

void cli_json_format_number(double value, char *out)
{
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, value);
        if (strtod(out, NULL) == value) return;
    }
}

void cli_json_number(double value)
{
    char text[32] = "null";
    if (isfinite(value)) cli_json_format_number(value, text);
    fputs(text, stdout);
}

void cli_json_integers(const int64_t *values, int64_t count)
{
    putchar('[');
    for (int64_t i = 0; i < count; i++) printf("%s%lld", i ? ", " : "", (long long)values[i]);
    putchar(']');
}
