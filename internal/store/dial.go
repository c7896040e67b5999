package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// keepAlive is how a silent server is noticed, on a connection that waits for
// it as on one that is idle.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}

var errCut = errors.New("the connection was cut")

// dial connects to a server, with bounds on its silence.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address == (cutAddr{}).String() {
		return nil, errCut
	}
	c, err := (&net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepAlive, Control: boundUnconfirmed}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &serverConn{Conn: c}, nil
}

// serverConn is a connection that can be cut: closed without a word to its
// server. pgx would otherwise, on a connection of its own, ask that to cancel what
// it does, and keep the connection's place in the pool until it has.
type serverConn struct {
	net.Conn
	cut atomic.Bool
}

// RemoteAddr returns an address to which nobody connects once the connection is
// cut.
func (c *serverConn) RemoteAddr() net.Addr {
	if c.cut.Load() {
		return cutAddr{}
	}
	return c.Conn.RemoteAddr()
}

type cutAddr struct{}

func (cutAddr) Network() string { return "tcp" }
func (cutAddr) String() string  { return "cut" }

// cut cuts a connection. It is safe for concurrent use.
func cut(c *pgx.Conn) {
	conn := c.PgConn().Conn()
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	if own, ok := conn.(*serverConn); ok {
		own.cut.Store(true)
	}
	conn.Close()
}
