/* protocol.wrap_messages in C, with the same result: about a third of the cost of a pipelined message.

   Built where there is a compiler; protocol.py has the Python twin, which says what this is for. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { MESSAGE = 0x03, HEADER_BYTES = 4, PREFIX_BYTES = 2, MAX_TEXT_BYTES = 136 };

static int is_text(const char *bytes, Py_ssize_t length)
{
    PyObject *text = PyUnicode_DecodeUTF8(bytes, length, NULL);
    if (!text)
        PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

/* memcpy for what is mostly short: a call would take longer. */
static inline unsigned char *copy(unsigned char *to, const unsigned char *from, Py_ssize_t bytes)
{
    for (; bytes >= 8; bytes -= 8, to += 8, from += 8)
        memcpy(to, from, 8);
    while (bytes-- > 0)
        *to++ = *from++;
    return to;
}

static PyObject *wrap_messages(PyObject *Py_UNUSED(module), PyObject *args)
{
    const unsigned char *data;
    char *prefix;
    Py_ssize_t size, at, prefix_size, count = 0;
    PyObject *envelope, *wrapped = NULL;
    int is_ascii;
    if (!PyArg_ParseTuple(args, "y#nOp", &data, &size, &at, &envelope, &is_ascii))
        return NULL;
    PyObject *holder = PyObject_GetAttrString(envelope, "prefix");
    if (!holder || PyBytes_AsStringAndSize(holder, &prefix, &prefix_size) < 0)
        goto done;

    Py_ssize_t end = at;
    while (0 <= end && end + HEADER_BYTES <= size) {
        const unsigned char *packet = data + end;
        Py_ssize_t length = packet[3];
        if (packet[0] != MESSAGE || packet[1] != length + PREFIX_BYTES || packet[2] != 0
            || length > MAX_TEXT_BYTES - prefix_size || end + HEADER_BYTES + length > size
            || !(is_ascii || is_text((const char *)packet + HEADER_BYTES, length)))
            break;
        end += HEADER_BYTES + length;
        count++;
    }

    wrapped = PyBytes_FromStringAndSize(NULL, end - at + count * prefix_size);
    if (!wrapped)
        goto done;
    unsigned char *out = (unsigned char *)PyBytes_AS_STRING(wrapped);
    for (Py_ssize_t from = at; from < end;) {
        Py_ssize_t length = data[from + 3], text = length + prefix_size;
        *out++ = MESSAGE;
        *out++ = (unsigned char)(text + PREFIX_BYTES);
        *out++ = 0;
        *out++ = (unsigned char)text;
        out = copy(out, (unsigned char *)prefix, prefix_size);
        out = copy(out, data + from + HEADER_BYTES, length);
        from += HEADER_BYTES + length;
    }
done:
    Py_XDECREF(holder);
    return wrapped ? Py_BuildValue("Nnn", wrapped, count, end) : NULL;
}

static PyMethodDef methods[] = {
    {"wrap_messages", wrap_messages, METH_VARARGS, "As protocol.wrap_messages."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_protocol", "protocol.py's hot loop.", -1, methods};

PyMODINIT_FUNC PyInit__protocol(void)
{
    return PyModule_Create(&module);
}
