#include "cli/commands.h"

int main(int argc, char** argv) { return dagmoe::run_program(argc, argv); }
