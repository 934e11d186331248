// Which instruction set runs: the best one that machine and build have, unless one is forced.
#pragma once

#include <string>
#include <vector>

#include "families.h"

namespace pyssl {

const Table& table();                   // the chosen one
void set_isa(const std::string& name);  // std::invalid_argument, saying why, if it cannot run here
std::vector<std::string> isas();        // those that can run here, best first

}  // namespace pyssl
