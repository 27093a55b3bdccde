//! Services: their life, their work and its order, bounds, errors.
#![forbid(unsafe_code)]

mod common;

use anabranch::component::{Service, ServiceBuilder, ServiceError, ServiceHandler};
use anabranch::{Config, Undelivered, yield_now};
use common::net::{check, on_real_backends};
use common::on_every_backend;
use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// How long anything may take before a test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells what it is told.
struct Teller(mpsc::Sender<(String, ThreadId)>);

impl Teller {
    fn tell(&self, what: String) {
        // The test may have seen enough.
        let _ = self.0.send((what, thread::current().id()));
    }
}

impl ServiceHandler for Teller {
    fn on_thread_start(&self, thread: usize) {
        self.tell(format!("thread {thread} starts"));
    }
    fn on_thread_stop(&self, thread: usize) {
        self.tell(format!("thread {thread} stops"));
    }
    fn on_started(&self) {
        self.tell("started".to_owned());
    }
    fn on_stopped(&self) {
        self.tell("stopped".to_owned());
    }
    fn on_error(&self, error: ServiceError) {
        self.tell(error.to_string());
    }
}

type Told = mpsc::Receiver<(String, ThreadId)>;

/// Settings whose handler tells.
fn telling(config: Config) -> (ServiceBuilder, Told) {
    let (sender, told) = mpsc::channel();
    (Service::builder().config(config).handler(Teller(sender)), told)
}

/// The next thing that is told.
fn next(told: &Told) -> String {
    told.recv_timeout(PATIENCE).expect("something is told").0
}

fn fail(text: &str) {
    panic!("{text}");
}

fn explode(payload: impl Send + 'static) {
    std::panic::panic_any(payload);
}

/// Runs work on the first loop and gives what it gives.
fn ask<T: Send + 'static>(service: &Service, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, answer) = mpsc::channel();
    service.post(move || sender.send(work()).map_err(|_| "nobody waits")).expect("room");
    answer.recv_timeout(PATIENCE).expect("the work runs")
}

#[test]
fn callbacks_come_in_the_order_of_a_life_on_the_threads_of_the_service() {
    on_real_backends(|config| {
        let (builder, told) = telling(config);
        let service = builder.threads(3).build();
        assert!(!service.is_started() && service.remotes().is_empty() && service.next_shard().is_none());
        assert!(!service.stop().unwrap(), "it was not started");
        service.start().unwrap();
        // All that has happened before the start returned.
        let begun: Vec<_> = told.try_iter().collect();
        assert_eq!(begun.len(), 4);
        let started = begun.iter().position(|(told, _)| told == "started").expect("it tells that it started");
        let thread = |index: usize, what: &str, all: &[(String, ThreadId)]| {
            let text = format!("thread {index} {what}");
            all.iter().find(|(told, _)| *told == text).map(|(_, thread)| *thread).expect("each thread tells")
        };
        let first = thread(0, "starts", &begun);
        assert_eq!(begun[started].1, first);
        assert!(begun[..started].iter().any(|(told, _)| told == "thread 0 starts"));
        assert_eq!(ask(&service, || thread::current().id()), first);
        assert!(service.is_started() && !service.is_polling());
        assert_eq!((service.threads(), service.remotes().len()), (3, 3));
        assert_eq!(service.start().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(service.stop().unwrap());
        let ended: Vec<_> = told.try_iter().collect();
        assert_eq!(ended.len(), 4);
        let stopped = ended.iter().position(|(told, _)| told == "stopped").expect("it tells that it stopped");
        let last = ended.iter().position(|(told, _)| told == "thread 0 stops").expect("its thread stops");
        assert!(stopped < last && ended[stopped].1 == first);
        for index in 0..3 {
            assert_eq!(thread(index, "stops", &ended), thread(index, "starts", &begun));
        }
        assert!(!service.is_started() && !service.stop().unwrap());
    });
}

#[test]
fn a_service_without_threads_cannot_be_started() {
    let service = Service::builder().threads(0).build();
    assert_eq!(service.start().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(!service.is_started());
}

#[test]
fn a_dispatch_inside_of_work_is_nested_and_a_post_comes_after_what_is_queued() {
    thread_local! {
        static ORDER: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }
    let note = |number| ORDER.with_borrow_mut(|order| order.push(number));
    on_every_backend(|config| {
        ORDER.take();
        check(config, async move {
            let here = Service::builder().on_current().unwrap();
            assert_eq!((here.threads(), here.remotes().len(), here.is_started()), (0, 1, true));
            let inner = here.clone();
            here.post(move || {
                note(1);
                let innermost = inner.clone();
                inner.post(move || note(6)).unwrap();
                inner
                    .dispatch(move || {
                        note(2);
                        innermost.dispatch(move || note(3)).unwrap();
                        note(4);
                    })
                    .unwrap();
                note(5);
            })
            .unwrap();
            here.post(move || note(10)).unwrap();
            // The caller is on the loop, so this runs here and now, before what is queued.
            here.dispatch(move || note(0)).unwrap();
            assert_eq!(ORDER.with_borrow(Vec::clone), [0]);
            while ORDER.with_borrow(Vec::len) < 8 {
                yield_now().await;
            }
        });
        assert_eq!(ORDER.take(), [0, 1, 2, 3, 4, 5, 10, 6]);
    });
}

#[test]
fn work_of_other_threads_is_queued_and_keeps_the_order_of_each() {
    const THREADS: usize = 4;
    const JOBS: usize = 500;
    on_real_backends(|config| {
        let service = Service::builder().config(config).threads(2).build();
        service.start().unwrap();
        let (sender, numbers) = mpsc::channel();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (service, sender) = (&service, sender.clone());
                scope.spawn(move || {
                    for number in 0..JOBS {
                        let sender = sender.clone();
                        let work = move || sender.send((thread, number, thread::current().id())).unwrap();
                        if number % 2 == 0 { service.post(work) } else { service.dispatch(work) }.unwrap();
                    }
                });
            }
        });
        let mut expected = [0; THREADS];
        let mut places = std::collections::HashSet::new();
        for _ in 0..THREADS * JOBS {
            let (thread, number, place) = numbers.recv_timeout(PATIENCE).unwrap();
            assert_eq!(number, expected[thread]);
            expected[thread] += 1;
            places.insert(place);
        }
        assert_eq!(places.len(), 1, "all of it runs on the first loop");
        assert!(!places.contains(&thread::current().id()));
    });
}

#[test]
fn a_full_mailbox_and_a_service_that_does_not_run_give_the_work_back() {
    on_real_backends(|config| {
        let service = Service::builder().config(config.with_limits(|limits| limits.mailbox_max = 4)).build();
        let ran = Arc::new(AtomicUsize::new(0));
        let work = || {
            let ran = Arc::clone(&ran);
            move || {
                ran.fetch_add(1, Ordering::SeqCst);
            }
        };
        let Err(Undelivered::Ended(job)) = service.post(work()) else { panic!("nothing runs") };
        job();
        let Err(Undelivered::Ended(_)) = service.dispatch(work()) else { panic!("nothing runs") };
        assert_eq!(ran.load(Ordering::SeqCst), 1);
        service.start().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let busy = move || {
            begin.send(()).unwrap();
            let _ = gate.recv();
        };
        service.post(busy).unwrap();
        begun.recv_timeout(PATIENCE).unwrap();
        for _ in 0..4 {
            service.post(work()).unwrap();
        }
        let refused = service.post(work());
        assert!(refused.as_ref().unwrap_err().to_string().contains("mailbox_max"));
        let Err(Undelivered::Full(job)) = refused else { panic!("there was no room") };
        drop(open);
        // It can be posted again, as soon as there is room.
        let mut job = Some(job);
        while let Some(back) = job.take() {
            job = service.post(back).err().map(Undelivered::into_inner);
            thread::yield_now();
        }
        ask(&service, || ());
        assert_eq!(ran.load(Ordering::SeqCst), 6);
    });
}

#[test]
fn errors_and_panics_of_work_are_told_and_the_loop_goes_on() {
    /// A payload that makes things worse.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload panics, too");
        }
    }
    on_real_backends(|config| {
        let (builder, told) = telling(config);
        let service = builder.build();
        service.start().unwrap();
        assert_eq!([next(&told), next(&told)], ["thread 0 starts", "started"]);
        service.post(|| Err::<(), _>(io::Error::other("on purpose"))).unwrap();
        assert_eq!(next(&told), "on purpose");
        service.post(|| Err::<(), _>("a text will do")).unwrap();
        assert_eq!(next(&told), "a text will do");
        service.post(|| fail("number 7")).unwrap();
        assert_eq!(next(&told), "panicked: number 7");
        service.post(|| explode(Bomb)).unwrap();
        assert_eq!(next(&told), "panicked: (no text)");
        let handle = service.handle().clone();
        // A dispatch that fails inside of work does not end that.
        let survived = ask(&service, move || {
            handle.dispatch(|| fail("inside")).unwrap();
            7
        });
        assert_eq!((survived, next(&told).as_str()), (7, "panicked: inside"));
        assert!(service.stop().unwrap());
    });
}

#[test]
fn a_handler_that_panics_everywhere_stops_nothing() {
    struct Clumsy;
    impl ServiceHandler for Clumsy {
        fn on_thread_start(&self, _: usize) {
            panic!("on purpose");
        }
        fn on_thread_stop(&self, _: usize) {
            panic!("on purpose");
        }
        fn on_started(&self) {
            panic!("on purpose");
        }
        fn on_stopped(&self) {
            panic!("on purpose");
        }
        fn on_error(&self, _: ServiceError) {
            panic!("on purpose");
        }
    }
    on_real_backends(|config| {
        let service = Service::builder().config(config).threads(2).handler(Clumsy).build();
        service.start().unwrap();
        service.post(|| fail("on purpose")).unwrap();
        assert_eq!(ask(&service, || 7), 7);
        assert!(service.stop().unwrap());
    });
}

#[test]
fn objects_are_spread_over_the_loops_by_turns_beginning_with_the_second() {
    on_real_backends(|config| {
        let service = Service::builder().config(config).threads(3).build();
        for _ in 0..2 {
            service.start().unwrap();
            let remotes: Vec<u64> = service.remotes().iter().map(anabranch::Remote::id).collect();
            let given: Vec<u64> = (0..6).map(|_| service.next_shard().unwrap().id()).collect();
            assert_eq!(given, [1, 2, 0, 1, 2, 0].map(|index| remotes[index]));
            assert_eq!(service.remote(2).unwrap().id(), remotes[2]);
            assert!(service.remote(3).is_none());
            assert!(service.stop().unwrap());
        }
    });
}

#[test]
fn after_a_restart_the_same_handles_name_the_new_loops() {
    on_real_backends(|config| {
        let (builder, told) = telling(config);
        let service = builder.threads(2).build();
        let handle = service.handle().clone();
        // It may be stopped; then it is only started.
        service.restart().unwrap();
        let old = handle.remotes();
        let (sender, dropped) = mpsc::channel::<()>();
        let waiting = move || async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        };
        drop(old[1].spawn_on(waiting).unwrap());
        service.restart().unwrap();
        assert!(dropped.recv_timeout(PATIENCE).is_err_and(|e| e == mpsc::RecvTimeoutError::Disconnected));
        assert!(old.iter().all(|remote| matches!(remote.run(|| ()), Err(Undelivered::Ended(_)))));
        let (sender, ran) = mpsc::channel();
        for remote in handle.remotes() {
            let sender = sender.clone();
            // Sockets can be made there.
            let bind = || async { anabranch::net::TcpListener::bind("127.0.0.1:0").await.map(drop) };
            let task = remote.spawn_on(bind).unwrap();
            let done =
                move || async move { sender.send(task.await.is_ok_and(|bound| bound.is_ok())).unwrap() };
            drop(remote.spawn_on(done).unwrap());
        }
        assert!(ran.recv_timeout(PATIENCE).unwrap() && ran.recv_timeout(PATIENCE).unwrap());
        assert!(service.stop().unwrap());
        let told: Vec<String> = told.try_iter().map(|(told, _)| told).collect();
        let count = |what: &str| told.iter().filter(|told| told.starts_with(what)).count();
        assert_eq!((count("started"), count("stopped"), count("thread")), (2, 2, 8));
    });
}

#[test]
fn a_service_that_polls_runs_work_and_timers_and_calls_in_between() {
    struct Idle(AtomicUsize, mpsc::Sender<usize>);
    impl ServiceHandler for Idle {
        fn on_idle(&self, thread: usize) {
            if self.0.fetch_add(1, Ordering::Relaxed) % 100 == 0 {
                let _ = self.1.send(thread);
            }
            assert_ne!(self.0.load(Ordering::Relaxed), 777, "on purpose");
            thread::yield_now();
        }
    }
    on_real_backends(|config| {
        let (sender, idle) = mpsc::channel();
        let builder = Service::builder().config(config).threads(2).polling(true);
        let service = builder.handler(Idle(AtomicUsize::new(0), sender)).build();
        service.start().unwrap();
        assert!(service.is_polling());
        let mut seen = [false; 2];
        while seen != [true; 2] {
            seen[idle.recv_timeout(PATIENCE).unwrap()] = true;
        }
        assert_eq!(ask(&service, || 7), 7);
        let (sender, woken) = mpsc::channel();
        let sleep = move || async move {
            anabranch::sleep(Duration::from_millis(5)).await;
            sender.send(()).unwrap();
        };
        drop(service.remote(1).unwrap().spawn_on(sleep).unwrap());
        woken.recv_timeout(PATIENCE).unwrap();
        // One that does not sleep can be stopped, too, and calls no more then.
        assert!(service.stop().unwrap());
        let _ = idle.try_iter().count();
        assert!(idle.try_recv().is_err());
    });
}

#[test]
fn its_own_threads_cannot_stop_it_and_nothing_hangs() {
    struct Meddler(Mutex<Option<Arc<Service>>>, mpsc::Sender<io::ErrorKind>);
    impl ServiceHandler for Meddler {
        fn on_thread_stop(&self, _: usize) {
            if let Some(service) = self.0.lock().unwrap().take() {
                self.1.send(service.restart().unwrap_err().kind()).unwrap();
            }
        }
    }
    on_real_backends(|config| {
        let (sender, refused) = mpsc::channel();
        let handler = Arc::new(Meddler(Mutex::default(), sender));
        struct Shared(Arc<Meddler>);
        impl ServiceHandler for Shared {
            fn on_thread_stop(&self, thread: usize) {
                self.0.on_thread_stop(thread);
            }
        }
        let service =
            Arc::new(Service::builder().config(config).handler(Shared(Arc::clone(&handler))).build());
        service.start().unwrap();
        let inner = Arc::clone(&service);
        let kinds = ask(&service, move || {
            [inner.stop().map(drop), inner.start(), inner.restart()].map(|result| result.unwrap_err().kind())
        });
        assert_eq!(kinds, [io::ErrorKind::Deadlock; 3]);
        *handler.0.lock().unwrap() = Some(Arc::clone(&service));
        assert!(service.stop().unwrap());
        assert_eq!(refused.recv_timeout(PATIENCE).unwrap(), io::ErrorKind::Deadlock);
    });
}

#[test]
fn a_service_may_be_dropped_by_its_own_work() {
    on_real_backends(|config| {
        let (builder, told) = telling(config);
        let service = builder.build();
        service.start().unwrap();
        let handle = service.handle().clone();
        let mut place = Some(service);
        handle.post(move || drop(place.take())).unwrap();
        // No more and no less: nothing panics because a thread would wait for itself.
        let life = ["thread 0 starts", "started", "stopped", "thread 0 stops"];
        assert_eq!([(); 4].map(|()| next(&told)), life);
        assert!(!handle.is_started());
    });
}

#[test]
fn the_current_shard_takes_work_until_it_ends() {
    on_every_backend(|config| {
        let handle = check(config, async {
            let here = Service::builder().on_current().unwrap();
            let done = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&done);
            here.post(move || count.store(1, Ordering::SeqCst)).unwrap();
            while done.load(Ordering::SeqCst) == 0 {
                yield_now().await;
            }
            assert_eq!(here.next_shard().unwrap().id(), anabranch::current().unwrap().id());
            here
        });
        assert!(matches!(handle.post(|| ()), Err(Undelivered::Ended(_))));
    });
    assert!(Service::builder().on_current().is_err(), "no shard runs here");
}
