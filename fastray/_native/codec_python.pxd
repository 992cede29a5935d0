# What the codec needs of CPython below its stable API: exact, version-dependent, in C.
# Only codec.pyx and decoder.pyx cimport it.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    // Of this thread, borrowed: the Encoder that pickles (codec.pyx), the references being loaded
    // (decoder.pyx). Each module that includes this has its own.
    static __thread PyObject* fr_current;

    // Makes `now` the current one; the caller puts back what this returns.
    static inline PyObject* fr_set_current(PyObject* now) {
      PyObject* before = fr_current;
      fr_current = now;
      return before;
    }

    // An exact int as int64; 0 when it does not fit.
    static inline int fr_int64(PyObject* value, int64_t* out) {
#if PY_VERSION_HEX >= 0x030C0000
      if (PyUnstable_Long_IsCompact((PyLongObject*)value)) {
        *out = PyUnstable_Long_CompactValue((PyLongObject*)value);
        return 1;
      }
#else
      Py_ssize_t digits = Py_SIZE(value);
      if (digits >= -1 && digits <= 1) {
        *out = digits * (int64_t)((PyLongObject*)value)->ob_digit[0];
        return 1;
      }
#endif
      int overflow;
      *out = PyLong_AsLongLongAndOverflow(value, &overflow);
      return !overflow;
    }

    static inline int fr_is_ascii(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
      if (PyUnicode_READY(text) < 0) PyErr_Clear();
#endif
      return PyUnicode_IS_COMPACT_ASCII(text);
    }

    static inline const char* fr_ascii_data(PyObject* text) {
      return (const char*)PyUnicode_1BYTE_DATA(text);
    }

    static inline Py_ssize_t fr_length(PyObject* text) { return PyUnicode_GET_LENGTH(text); }

    // Bytes of a str as UTF-8; -1 when it holds a surrogate.
    static Py_ssize_t fr_utf8_size(PyObject* text) {
      if (PyUnicode_IS_ASCII(text)) return PyUnicode_GET_LENGTH(text);
      int kind = PyUnicode_KIND(text);
      const void* data = PyUnicode_DATA(text);
      Py_ssize_t n = PyUnicode_GET_LENGTH(text), size = n;
      for (Py_ssize_t i = 0; i < n; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        if (c >= 0xD800 && c <= 0xDFFF) return -1;
        size += (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
      }
      return size;
    }

    static void fr_utf8_write(PyObject* text, unsigned char* out) {
      int kind = PyUnicode_KIND(text);
      const void* data = PyUnicode_DATA(text);
      Py_ssize_t n = PyUnicode_GET_LENGTH(text);
      if (PyUnicode_IS_ASCII(text)) {
        memcpy(out, data, (size_t)n);
        return;
      }
      for (Py_ssize_t i = 0; i < n; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        if (c < 0x80) {
          *out++ = (unsigned char)c;
          continue;
        }
        if (c < 0x800) {
          *out++ = (unsigned char)(0xC0 | c >> 6);
        } else {
          if (c < 0x10000) {
            *out++ = (unsigned char)(0xE0 | c >> 12);
          } else {
            *out++ = (unsigned char)(0xF0 | c >> 18);
            *out++ = (unsigned char)(0x80 | (c >> 12 & 0x3F));
          }
          *out++ = (unsigned char)(0x80 | (c >> 6 & 0x3F));
        }
        *out++ = (unsigned char)(0x80 | (c & 0x3F));
      }
    }

    static inline int fr_all_ascii(const unsigned char* p, Py_ssize_t n) {
      uint64_t seen = 0, word;
      for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        seen |= word;
      }
      for (; n > 0; p++, n--) seen |= *p;
      return !(seen & 0x8080808080808080ull);
    }

    // A str of n ASCII bytes (checked by the caller).
    static inline PyObject* fr_ascii_new(const unsigned char* p, Py_ssize_t n) {
      if (n < 2) return PyUnicode_FromStringAndSize((const char*)p, n);
      PyObject* text = PyUnicode_New(n, 127);
      if (text) memcpy(PyUnicode_1BYTE_DATA(text), p, (size_t)n);
      return text;
    }

    static inline PyObject** fr_tuple_items(PyObject* items) { return ((PyTupleObject*)items)->ob_item; }

    static inline PyObject* fr_intern(PyObject* name) {
      Py_INCREF(name);
      PyUnicode_InternInPlace(&name);
      return name;
    }

    // Whether a pickle may name something of __main__ or __mp_main__, which no worker can import.
    static inline int fr_names_main(const char* p, Py_ssize_t n) {
      return memmem(p, (size_t)n, "_main__", 7) != NULL;
    }

    // A number for the name caches: of the first and the last 8 bytes, and of the length.
    static inline unsigned int fr_hash(const unsigned char* p, Py_ssize_t n) {
      uint64_t first = 0, last = 0;
      if (n >= 8) {
        memcpy(&first, p, 8);
        memcpy(&last, p + n - 8, 8);
      } else {
        memcpy(&first, p, (size_t)n);
      }
      uint64_t h = (first ^ (last << 7 | last >> 57) ^ (uint64_t)n) * 0x9E3779B97F4A7C15ull;
      return (unsigned int)(h >> 40);
    }
    """
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject PyLong_Type, PyUnicode_Type, PyBytes_Type, PyFloat_Type, PyTuple_Type
    PyTypeObject PyList_Type, PyDict_Type, PyByteArray_Type
    PyObject* fr_none "Py_None"
    PyObject* fr_true "Py_True"
    PyObject* fr_false "Py_False"
    PyObject* fr_current
    PyObject* fr_set_current(PyObject* now)
    PyTypeObject* fr_type "Py_TYPE"(PyObject*)
    Py_ssize_t fr_refcount "Py_REFCNT"(PyObject*)
    void fr_incref "Py_INCREF"(PyObject*)
    void fr_xdecref "Py_XDECREF"(PyObject*)
    bint fr_int64(PyObject* value, int64_t* out)
    bint fr_is_ascii(PyObject* text)
    const char* fr_ascii_data(PyObject* text)
    Py_ssize_t fr_length(PyObject* text)
    Py_ssize_t fr_utf8_size(PyObject* text)
    void fr_utf8_write(PyObject* text, unsigned char* out)
    bint fr_all_ascii(const unsigned char* p, Py_ssize_t n)
    bint fr_names_main(const char* p, Py_ssize_t n)
    unsigned int fr_hash(const unsigned char* p, Py_ssize_t n)
    object fr_ascii_new(const unsigned char* p, Py_ssize_t n)
    object fr_intern(object name)
    double fr_double "PyFloat_AS_DOUBLE"(PyObject*)
    char* fr_bytes_data "PyBytes_AS_STRING"(PyObject*)
    Py_ssize_t fr_bytes_size "PyBytes_GET_SIZE"(PyObject*)
    Py_ssize_t fr_bytearray_size "PyByteArray_GET_SIZE"(PyObject*)
    Py_ssize_t fr_tuple_size "PyTuple_GET_SIZE"(PyObject*)
    PyObject* fr_tuple_item "PyTuple_GET_ITEM"(PyObject*, Py_ssize_t)
    PyObject** fr_tuple_items(PyObject* items)
    Py_ssize_t fr_list_size "PyList_GET_SIZE"(PyObject*)
    PyObject* fr_list_item "PyList_GET_ITEM"(PyObject*, Py_ssize_t)
    Py_ssize_t fr_dict_size "PyDict_Size"(PyObject*)
    bint fr_dict_next "PyDict_Next"(PyObject*, Py_ssize_t*, PyObject**, PyObject**)
    object PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)
    object PyBytes_FromStringAndSize(const char* p, Py_ssize_t n)
    object PyFloat_FromDouble(double x)
    object PyLong_FromLongLong(long long x)
    object PyTuple_New(Py_ssize_t n)
    object PyList_New(Py_ssize_t n)
    void fr_tuple_set "PyTuple_SET_ITEM"(object, Py_ssize_t, PyObject*)
    void fr_list_set "PyList_SET_ITEM"(object, Py_ssize_t, PyObject*)
    int PyDict_SetItem(object, object, object) noexcept
