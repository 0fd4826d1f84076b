#include "cli/classes.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct class_list {
    int64_t *classes;
    int64_t count, room;
};

static int append(struct cli *cli, struct class_list *list, int64_t class)
{
    if (list->count == list->room) {
        int64_t room = list->room ? 2 * list->room : 16;
        int64_t *grown = realloc(list->classes, (size_t)room * sizeof *grown);
        if (!grown) return cli_fail(cli, "not enough memory for the list of classes");
        list->classes = grown;
        list->room = room;
    }
    list->classes[list->count++] = class;
    return STATUS_OK;
}

/* Digits at *text to a number (capped, far above any class); false without digits. Moves *text past them. */
static bool take_number(const char **text, int64_t *number)
{
    const char *c = *text;
    *number = 0;
    for (; isdigit((unsigned char)*c); c++)
        if (*number < 1000000000) *number = *number * 10 + (*c - '0');
    bool any = c != *text;
    *text = c;
    return any;
}

/* How much `name` looks like what was asked: 0 when it contains it, else the edits between the two. */
static size_t likeness(const char *asked, const char *name)
{
    return strcasestr(name, asked) ? 0 : cli_distance(asked, name);
}

static int refuse_name(struct cli *cli, const char *asked)
{
    enum { SHOWN = 3 };
    const char *names[SHOWN] = {NULL};
    size_t scores[SHOWN], limit = strlen(asked) / 3 + 1;
    int last = cli->info.num_classes - 1;
    bool any_names = false;
    for (int64_t i = 0; i <= last; i++) {
        const char *name = aim_model_class_name(cli->model, i);
        if (!name) continue;
        any_names = true;
        size_t score = likeness(asked, name);
        for (int k = 0; k < SHOWN && score <= limit; k++) { /* insertion into the best few */
            if (names[k] && scores[k] <= score) continue;
            const char *pushed = names[k];
            size_t pushed_score = pushed ? scores[k] : SIZE_MAX;
            names[k] = name;
            scores[k] = score;
            name = pushed;
            score = pushed_score;
        }
    }
    if (!any_names)
        return cli_usage(cli, "'%s' is not a class: this model has no class names, only numbers 0 to %d", asked, last);
    if (!names[0]) return cli_usage(cli, "the model has no class '%s'; 'aim info' tells the names", asked);
    return cli_usage(cli, "the model has no class '%s'; near it are '%s'%s%s%s%s%s%s", asked, names[0], names[1] ? ", '" : "",
                     names[1] ? names[1] : "", names[1] ? "'" : "", names[2] ? ", '" : "", names[2] ? names[2] : "",
                     names[2] ? "'" : "");
}

/* One item between commas, without the spaces around it. */
static int parse_item(struct cli *cli, struct class_list *list, const char *item)
{
    const char *rest = item;
    int64_t first = 0, final = 0, limit = cli->info.num_classes;
    bool number = take_number(&rest, &first), range = number && *rest == '-';
    final = first;
    if (range) rest++;
    if (range && !take_number(&rest, &final)) number = false;
    if (number && *rest == '\0') {
        if (final < first) return cli_usage(cli, "the range '%s' of classes runs backwards", item);
        if (final >= limit)
            return cli_usage(cli, "class %s is not there: the model's classes are 0 to %lld", item, (long long)(limit - 1));
        for (int64_t i = first; i <= final; i++) CLI_TRY(append(cli, list, i));
        return STATUS_OK;
    }
    int64_t named = aim_model_find_class(cli->model, item);
    return named >= 0 ? append(cli, list, named) : refuse_name(cli, item);
}

int classes_parse(struct cli *cli, const char *text, int64_t **classes, int64_t *count)
{
    struct class_list list = {0};
    int status = STATUS_OK;
    for (const char *at = text; status == STATUS_OK;) {
        char item[256];
        size_t length = strcspn(at, ","), end = length;
        const char *begin = at;
        while (end > 0 && isspace((unsigned char)begin[end - 1])) end--;
        while (end > 0 && isspace((unsigned char)*begin)) begin++, end--;
        if (end == 0)
            status = cli_usage(cli, "--classes '%s' has an empty item", text);
        else if (end >= sizeof item)
            status = cli_usage(cli, "--classes has an item of %zu characters, longer than any class name", end);
        else {
            snprintf(item, sizeof item, "%.*s", (int)end, begin);
            status = parse_item(cli, &list, item);
        }
        if (!at[length]) break;
        at += length + 1;
    }
    if (status != STATUS_OK) {
        free(list.classes);
        return status;
    }
    *classes = list.classes;
    *count = list.count;
    return STATUS_OK;
}
