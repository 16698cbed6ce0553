// The options of a task as text, such as "operation=cross_entropy axis=1". All interfaces of the
// kernel receive this text: operators of TensorFlow and PyTorch, XLA's handler, and Plan.
// xentx/_core/_spec.py writes it. It omits options that have their default.
#pragma once
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

#include "kernel.h"

namespace xentx {

template <class T> struct Name {
    const char* name;
    T value;
};
constexpr Name<DType> kDTypes[] = {
    {"float16", DType::float16}, {"bfloat16", DType::bfloat16}, {"float32", DType::float32},
    {"float64", DType::float64}, {"int32", DType::int32},       {"int64", DType::int64},
};
constexpr Name<Operation> kOperations[] = {
    {"cross_entropy", Operation::cross_entropy},
    {"log_softmax", Operation::log_softmax},
    {"log_softmax_pullback", Operation::log_softmax_pullback},
    {"nll_loss", Operation::nll_loss},
    {"row_stats", Operation::row_stats},
    {"block_state", Operation::block_state},
    {"block_gradient", Operation::block_gradient},
};
constexpr Name<Reduction> kReductions[] = {
    {"none", Reduction::none},
    {"sum", Reduction::sum},
    {"mean", Reduction::mean},
    {"weighted_mean", Reduction::weighted_mean},
};

template <class T, size_t n>
T named(const Name<T> (&names)[n], const std::string& name) {
    for (const auto& known : names)
        if (name == known.name) return known.value;
    throw std::invalid_argument("unknown name: " + name);
}

struct Options {
    Task task;  // without arrays and sizes
    int64_t axis = 0;
    bool soft = false;

    // other(name, value) accepts words that only one interface has.
    template <class Other> Options(const std::string& text, const Other& other) {
        std::istringstream words(text);
        for (std::string word; words >> word;) {
            const size_t end = word.find('=');
            const std::string name = word.substr(0, end);
            const std::string value = end == std::string::npos ? "" : word.substr(end + 1);
            if (!set(name, value) && !other(name, value))
                throw std::invalid_argument("options: got " + word);
        }
    }
    explicit Options(const std::string& text)
        : Options(text, [](const std::string&, const std::string&) { return false; }) {}

    // Options that are false are omitted.
    static bool flag(const std::string& value) {
        if (value != "True") throw std::invalid_argument("options: got the flag " + value);
        return true;
    }

  private:
    // Independent of the locale, and correctly rounded.
    template <class Number> static Number number(const std::string& text) {
        std::istringstream stream(text);
        stream.imbue(std::locale::classic());
        Number value{};
        if (!(stream >> value)) throw std::invalid_argument("options: got the number " + text);
        return value;
    }

    bool set(const std::string& name, const std::string& value) {
        if (name == "operation") {
            task.operation = named(kOperations, value);
        } else if (name == "axis") {
            axis = number<int64_t>(value);
        } else if (name == "soft") {
            soft = flag(value);
        } else if (name == "reduction") {
            task.reduction = named(kReductions, value);
        } else if (name == "ignore_index") {
            task.has_ignore = true;
            task.ignore_index = number<int64_t>(value);
        } else if (name == "label_smoothing") {
            task.label_smoothing = number<double>(value);
        } else if (name == "z_loss") {
            task.z_loss = number<double>(value);
        } else if (name == "logit_softcap") {
            task.logit_softcap = number<double>(value);
        } else if (name == "temperature") {
            task.temperature = number<double>(value);
        } else if (name == "exact") {
            task.exact = flag(value);
        } else {
            return false;
        }
        return true;
    }
};

}  // namespace xentx
