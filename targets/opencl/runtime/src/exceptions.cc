// What libc++ asks of the library below it about exceptions, and libstdc++, which lies there, calls otherwise or has not.
// Nothing here makes a std::exception_ptr: its functions are there so that libc++'s own exceptions stay out.
#include <cstdlib>

extern "C" {

// Itanium C++ ABI, section 2.2.2: what a thread has caught, and how many exceptions are on their way.
struct __cxa_eh_globals {
  void* caught;
  unsigned int uncaught;
};
__cxa_eh_globals* __cxa_get_globals();

unsigned int __cxa_uncaught_exceptions() { return __cxa_get_globals()->uncaught; }

void* __cxa_current_primary_exception() { return nullptr; }
void __cxa_increment_exception_refcount(void*) {}
void __cxa_decrement_exception_refcount(void*) {}
void __cxa_rethrow_primary_exception(void*) { std::abort(); }

}  // extern "C"
