# Foreign declarations of csrc/link.h, as cpp.pxd has the others.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from fastray._native.cpp cimport Handle, Offset, Process, Record, Segment

cdef extern from "link.h" namespace "fastray" nogil:
    cdef cppclass Bulk "fastray::Link::Bulk":
        Handle local, remote
        Offset payload
        uint32_t result_bytes
        uint64_t flags
        Handle task
    cdef cppclass Copy "fastray::Link::Copy":
        Handle h
        uint64_t node
        Handle there
    cdef cppclass LocalFunction "fastray::Link::LocalFunction":
        uint32_t function
        uint16_t cls
    cdef cppclass LinkCounts "fastray::Link::Counts":
        size_t outstanding, imports, exported, held, mirrors
    cdef cppclass Cancel "std::pair<fastray::Handle, uint64_t>":
        Handle first
        uint64_t second
    cdef cppclass Ended "fastray::Link::Ended":
        Handle creation
        uint32_t end
    cdef enum Stop "fastray::Link::Stop":
        pass
    cdef cppclass Link:
        Link(Process* process, uint64_t self, uint64_t peer)
        size_t claim(uint32_t cls, size_t n)
        void stage(Handle claimed)
        vector[uint32_t] unknown_functions()
        void describe(uint32_t function, const string& message)
        vector[uint32_t] unknown_classes()
        void describe_class(uint32_t cls, const string& message)
        size_t outstanding_in(uint32_t cls)
        void send_staged()
        cbool knows(uint32_t function)
        void send_actor(Handle creation)
        cbool hosts(Handle creation)
        size_t claim_calls(uint32_t actor, size_t n)
        void send_actor_stop(Handle creation, Stop how)
        void prepare_actor(uint64_t wire, uint32_t actor)
        cbool has_staged()
        vector[Handle] unknown_actors()
        cbool import_actor(const string& ref, uint32_t actor)
        cbool knows_actor(Handle creation)
        cbool mirrors_actor(Handle creation)
        vector[Ended] take_ended()
        vector[Cancel] take_kills()
        size_t outstanding()
        void send_cancel(Handle task, cbool force)
        uint64_t bytes_there(Handle task)
        cbool holds(Handle h)
        cbool is_fetching(Handle asked)
        @staticmethod
        uint64_t value_bytes(const Segment& segment, const Record& r)
        void know(uint32_t number, LocalFunction function)
        void know_class(uint32_t number, uint32_t cls)
        cbool collect()
        void send_consumed()
        size_t imported()
        Handle imported_as(uint64_t wire)
        size_t receive(const uint8_t* data, size_t size, const uint8_t** message, size_t* message_bytes)
        cbool bad()
        void fetch(Handle asked, cbool here)
        vector[Copy] take_elsewhere()
        void fetch_copy(Handle asked, Handle there)
        vector[Handle] take_orphans()
        cbool mirrors(Handle h)
        void have_copy(Handle mirror)
        vector[Copy] take_copies()
        vector[Handle] take_moved()
        vector[Handle] take_gone()
        cbool switch_to(const Copy& copy)
        void send_message(const string& body)
        string export_ref(Handle h)
        Handle import_ref(const string& ref)
        void sweep()
        string take_out()
        size_t out_bytes()
        void down(const string& error)
        vector[Bulk] take_bulk()
        cbool finish_bulk(const Bulk& bulk, cbool complete)
        vector[Cancel] take_cancels()
        uint64_t peer()
        LinkCounts counts()
