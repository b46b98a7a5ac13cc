// Symbols that a newer compiler asks of the C++ and C libraries and that boards with GCC 8 and glibc 2.28 lack: they
// are defined here, and exports.map keeps them inside, so the library needs nothing newer than GLIBC_2.28 and GLIBCXX_3.4.25. A test reads the
// built library and holds it to that.
#include <new>
#include <sstream>
#include <stdexcept>

namespace std {

// GLIBCXX_3.4.26 exports this constructor.
template basic_ostringstream<char>::basic_ostringstream();

// GLIBCXX_3.4.29.
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

}  // namespace std

// GLIBC_2.32: whether the process has one thread, for cheaper reference counts. "No" is always right.
extern "C" {
char __libc_single_threaded = 0;
}
