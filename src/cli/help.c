#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

enum { PAGE_WIDTH = 90, OPTION_COLUMN = 26 };

/* Prints text in lines of PAGE_WIDTH, each after the first indented; the cursor stands at `column`. */
static void print_wrapped(const char *text, int column, int indent)
{
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > indent && column + 1 + length > PAGE_WIDTH) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        printf("%.*s", length, text);
        column += length;
        text += length;
        while (*text == ' ') text++;
    }
    putchar('\n');
}

static void print_option(const struct option *o)
{
    char left[64], text[512];
    snprintf(left, sizeof left, "  %c%c%s --%s%s%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ', o->letter ? "," : " ",
             o->name, o->metavar ? " " : "", o->metavar ? o->metavar : "");
    size_t used = (size_t)snprintf(text, sizeof text, "%s", o->help);
    if (o->type == OPTION_CHOICE) used += (size_t)snprintf(text + used, sizeof text - used, ": %s", o->range);
    if (o->initial) snprintf(text + used, sizeof text - used, " [default: %s]", o->initial);
    if (strlen(left) < OPTION_COLUMN - 1)
        printf("%-*s", OPTION_COLUMN, left);
    else
        printf("%s\n%*s", left, OPTION_COLUMN, "");
    print_wrapped(text, OPTION_COLUMN, OPTION_COLUMN);
}

static void print_group(const struct command *command, enum option_group group, const char *title)
{
    bool first = true;
    for (const struct option *o = options_table; o->name; o++) {
        if (o->group != group || !(o->commands & (int)command->bit)) continue;
        if (first) printf("\n%s\n", title);
        first = false;
        print_option(o);
    }
}

void help_command(const struct command *command)
{
    printf("aim %s - %s\n\nUsage: aim %s %s\n\n", command->name, command->summary, command->name, command->usage);
    print_wrapped(command->details, 0, 0);
    print_group(command, GROUP_COMMAND, "Options:");
    print_group(command, GROUP_MODEL, "Model:");
    print_group(command, GROUP_GENERAL, "General:");
    printf("\nOutput:\n  ");
    print_wrapped(command->output, 2, 2);
    printf("\nExamples:\n");
    for (const char *line = command->examples; *line;) {
        int length = (int)strcspn(line, "\n");
        printf("  %.*s\n", length, line);
        line += length + (line[length] == '\n');
    }
    printf("\nExit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.\n");
}

void help_program(void)
{
    printf("aim - class-conditional pictures, generated one code at a time with Mamba-2 (AiM, arXiv 2408.12245)\n\n"
           "Usage: aim COMMAND [OPTIONS]\n\nCommands:\n");
    for (const struct command *c = commands_table; c->name; c++) printf("  %-17s%s\n", c->name, c->summary);
    printf("\n'aim COMMAND --help' tells all about a command; 'aim --version' tells the version.\n\n"
           "Results go to stdout, progress and messages to stderr. The model is -m PATH, else $AIM_MODEL, else the demo\n"
           "model that came with the program.\n\nExamples:\n"
           "  aim generate -c 3 -n 4 -o pictures.png\n"
           "  aim reconstruct photo.jpg -o compare.png\n"
           "  aim info -m aim-base\n");
}
